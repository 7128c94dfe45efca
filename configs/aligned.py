"""The documents' aligned setup: plateau rule on the ladder 128-256-512-full, sawtooth stages of 2, 3 and the rest.

    python main.py --config=configs/aligned.py --workdir=runs/aligned --config.data.path=corpus.txt

Expected result: not known. 50,000 steps of 32 windows of 1024 bytes take weeks on two CPU cores, so this config was
never run to its end there; its first steps were, and `configs/quickstart.py` is its small twin that is.

Every key there is stands here, once, with its meaning. Other configs start from this one and change what differs.
"""

from ml_collections import ConfigDict, config_dict


def either(value):
    """A key that takes values of several types, such as bins (int), a fraction (float) or a name (str)."""
    return config_dict.FieldReference(value, field_type=object)


def get_config() -> ConfigDict:
    """All keys with the values of the source documents."""
    c = ConfigDict()
    c.task = "train"  # train: language modelling on a corpus; raft: reward-ranked fine-tuning on a task (section raft).
    c.seed = 0  # Of initialisation, data order, dropout and samples; below 2**32.
    # Where compiled programs are kept between processes: auto (~/.cache/fftlm_jax/...), a folder, or "" for nowhere.
    # Where the environment has CI or JAX_COMPILATION_CACHE_DIR set, this is not looked at.
    c.compile_cache = "auto"

    c.model = model = ConfigDict()
    model.seq_len = 1024  # T: bytes of a training window.
    model.kernel_len = 128  # K: taps of a convolution kernel.
    model.d_model = 512  # D: width of the residual stream.
    model.n_layers = 6  # Blocks.
    model.mixer = "convolution"  # What mixes time: convolution, or attention (rotary, causal; the baseline).
    model.conv_heads = 8  # H: kernels per layer; must divide d_model.
    model.kernel_basis = "cosine"  # What a kernel's parameters are: its cosine spectrum, or its taps.
    model.projections = True  # False: the source's plain block, a convolution and its gain alone.
    model.attention_heads = 8  # Of mixer "attention"; d_model over it must be even.
    model.ffn_mult = 2.0  # Hidden width of the feed-forward layer over d_model.
    model.chunk = 16  # C: bytes the head predicts at once; must divide seq_len. Head 0 is the next-byte head.
    model.memory = "none"  # Spectral memory beside the blocks: none, aligned or polar (see model/memory.py).
    model.memory_piece = 16  # Bytes whose spectrum the memory takes in at a time.
    model.conv_method = "auto"  # auto, toeplitz, fft or direct: equal to round-off.
    model.dropout = 0.0  # On both branches of every block.
    model.remat = "none"  # blocks: keep none of their inner results for the backward pass, which computes them again.
    model.dtype = "float32"  # Of the matrix products; weights and losses are always float32. Or bfloat16.

    c.objective = objective = ConfigDict()
    objective.name = "chunk"  # next_byte; chunk: 16 bytes at each chunk boundary; chunk_head: that on a trained model.
    objective.positions = "boundaries"  # Of the chunk loss: all boundaries, or the last one only (the original).
    objective.next_byte_weight = 1.0  # Weight of the next-byte loss beside the chunk loss.
    objective.backbone = "trained"  # Of chunk_head: all is trained, or the head alone (frozen; needs init.checkpoint).

    c.curriculum = curriculum = ConfigDict()
    # plateau, schedule (by epoch) or none (full band from the start). The documents' rule lost to "none" in every small
    # trial of ours (experiments/CLAIMS.md), so `configs/full_band.py` is the same setup without it.
    curriculum.rule = "plateau"
    curriculum.ladder = (128, 256, 512, "full")  # Cutoffs: bins (int), fractions of Nyquist (float) or "full".
    curriculum.initial = either("first")  # Cutoff at step 0: "first" rung, or a cutoff.
    curriculum.min_epoch = 2  # No raise before this many whole epochs are done.
    curriculum.window = 50  # Losses of the plateau rule, one per optimizer step; even.
    # Relative improvement below which the loss has plateaued. LARGER raises SOONER (the documents say the opposite).
    # At a loss of 2.86, 0.005 per 25 steps is 0.57 nats per 1000 steps: late in a tooth this fires at nearly every
    # check. Raised too fast: make it smaller or the window longer.
    curriculum.threshold = 0.005
    # What is held against the threshold: the improvement as seen (simple, the documents'), or its upper bound
    # (confidence), which noise alone seldom brings below it. Noisy losses then need a much longer window to be raised.
    curriculum.test = "simple"
    curriculum.confidence = 0.95  # Of test "confidence", one-sided: the chance, at each check, not to raise too soon.
    curriculum.check_every = either("epoch")  # When the plateau rule is checked: "epoch", or a number of steps.
    curriculum.schedule = ((0, 128), (2, 256), (5, 512), (10, "full"))  # (first epoch, cutoff) of rule "schedule".
    curriculum.method = "cosine"  # cosine, minimum_phase, or signal (sees the future: refused unless harmless).
    curriculum.transition_bins = 32  # Width of the minimum_phase band edge.

    c.lr = lr = ConfigDict()
    lr.base = 2e-4  # Peak learning rate.
    lr.schedule = "sawtooth"  # sawtooth, or cooldown: stages of equal length, then down to a tenth (no events).
    # Of schedule "sawtooth": (epochs, peak, floor), multipliers of base.
    lr.stages = ((2, 1.0, 0.1), (3, 1.0, 0.1), ("rest", 1.0, 0.05))
    # At a raise: tooth (new cosine from the peak), pulse (the peak for one step) or none. Better than reducing (factor)
    # everywhere we looked; against none it gains a little where a raise falls in the midst of a stage, else nothing.
    lr.restart = "tooth"
    # At a raise, multiplied into the LR for good: a number, sqrt_ratio (old/new cutoff)^0.5, inverse_ratio old/new, or
    # adaptive: 0.5, 0.7 or 0.9 by how far the loss rose (above 0.3, above 0.1 nats, or less).
    lr.factor = either(1.0)
    lr.spike_steps = 10  # Of factor "adaptive": losses on either side of a raise that are compared.
    lr.multipliers = (1.0, 1.52, 1.73)  # Of schedule "cooldown": of the base, one per stage.
    lr.cooldown = 0.55  # Of schedule "cooldown": the fraction of training it takes.

    c.optim = optim = ConfigDict()
    optim.name = "adamw"  # Or muon: Muon for the matrices of the blocks, AdamW for everything else.
    optim.b1 = 0.9  # Decay of the first moment.
    optim.b2 = 0.95  # Of the second. At 0.999 a coefficient that opens late starts with updates 11 times too large.
    optim.eps = 1e-8  # Added to the root of the second moment.
    optim.weight_decay = 5e-4  # Decoupled, on matrices only.
    optim.clip = 1.0  # Global gradient norm.
    optim.ema_decay = 0.0  # Of an average of the weights, per step, evaluated beside them (ema_bpb); 0 for none.
    # Of optim.name "muon". lr.base is Muon's learning rate, about 100 times that of AdamW.
    optim.adam_scale = 0.15  # AdamW's learning rate over Muon's.
    optim.momentum = 0.95  # Of the gradients before the polar factor (Nesterov).
    optim.momentum_warmup = 0  # Steps in which the momentum rises from 0.85,
    optim.momentum_cooldown = 0  # and last steps in which it falls back.
    optim.polar = "polar_express"  # How the polar factor is found: polar_express, ns5, dion, gram or svd (exact, slow).
    optim.polar_steps = 5  # Iterations of it.
    optim.shape = "keller"  # Scale of updates by shape: keller max(1, out/in)^0.5, spectral (out/in)^0.5, rms or none.
    optim.neuron_beta2 = 0.0  # NorMuon: decay of a second moment per neuron; 0 for none.
    optim.cautious = True  # Muon's weight decay acts only where the update shrinks the weight anyway.
    optim.brake = 1.0  # Factor on the part of a step that lengthens a matrix: 1 none, 0.5 radial brake.
    # alpha: how much of the gradient's part along the weight (the radial, or spectral, component) is given back. A
    # number, or by group, as (("mixer", 0.05), ("mlp", 0.15)). 0 is Muon.
    optim.spectral_lr = either(0.0)
    optim.spectral_mode = "interpolate"  # interpolate, orthogonal, add or tangent (see optim/with_spectral.py).
    optim.spectral_normalize = "none"  # none: in units of the gradient; frobenius or second_moment: free of units.
    optim.spectral_adaptive = "none"  # alpha follows the alignment: none, by its cosine, or by rho ("ratio").
    optim.spectral_span = (0.0, 1.0)  # Fractions of training between which alpha acts.
    # Units alpha was tuned in, over those of a mean loss (2 x tokens of a step for the source's sweep); they grow with
    # the batch under train.batch_stages.
    optim.grad_units = 1.0

    c.train = train = ConfigDict()
    train.batch_size = 4  # Windows per micro-batch.
    train.accum_steps = 8  # Micro-batches per optimizer step.
    # Multiples of accum_steps in as many equal stages of training; (1, 2, 3) are those of lr.multipliers' source.
    train.batch_stages = (1,)
    train.steps_per_epoch = 1000  # Optimizer steps that make an "epoch".
    train.epochs = 50
    train.skip_nonfinite = (
        0  # Steps in a row with a NaN or infinite loss or gradient that are passed over; then it ends.
    )
    train.log_every = 10  # Steps between console lines and TensorBoard points; metrics.jsonl has every step.

    c.eval = evaluation = ConfigDict()
    evaluation.every = 1000  # Steps between evaluations; the last step is always evaluated.
    evaluation.before_raise = True  # Also just before every raise, so that each cutoff's last state is on record.
    evaluation.batch_size = 8  # Windows per forward pass.
    evaluation.max_bytes = 262144  # Of the held-out part, from its beginning; 0 for all of it.

    c.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # Steps between checkpoints; the last step is always saved.
    checkpoint.keep_last = 2  # Newest checkpoints kept, at least 2: the newest may be cut short.
    checkpoint.retries = 2  # Saves in a row that may fail, as on a full disk, before the run ends.
    checkpoint.keep_best = 1  # Checkpoints of lowest bpb kept besides; an evaluation that is the best yet is saved.

    c.sample = sample = ConfigDict()
    sample.prompt = "def "  # What samples.txt continues.
    sample.bytes = 128  # Length of the sample written at each evaluation; 0 for none.
    sample.mode = "byte"  # byte by byte; chunk: a chunk at once; speculative: as byte, in fewer passes of the model.
    sample.temperature = 0.8  # 0 is greedy.
    sample.top_k = 0  # Keep the k likeliest bytes; 0 keeps all.
    sample.top_p = 0.95  # Keep the likeliest bytes of this total probability.
    sample.min_p = 0.0  # Keep the bytes at least this many times as probable as the likeliest; 0 keeps all.
    sample.repetition_penalty = 1.0  # Above 1, bytes seen lately become less likely:
    sample.repetition_window = 64  # those among this many last bytes.
    sample.longest_run = 0  # No byte more often than this in a row; 0 for no limit.
    sample.ascii_only = False  # Whether to write nothing but printable ASCII, tabs and newlines.

    c.data = data = ConfigDict()
    data.source = "python_stdlib"  # This Python's standard library; or "files".
    data.path = ""  # A file, a folder or a glob; if set, source is files.
    data.held_out = 0.1  # Fraction: of a single file its end, of many files by a hash of their names.

    c.init = init = ConfigDict()
    init.checkpoint = ""  # Start from the weights of this run directory (or checkpoints/<step> in it).
    init.epoch = 0  # Age in epochs of weights without controller state: bounds the starting cutoff from below.

    c.resume = resume = ConfigDict()
    resume.mode = "auto"  # auto: resume what is there; never: refuse a non-empty folder; must: refuse an empty one.
    resume.allow = ()  # What may change on resume: keys or whole sections, such as ("lr", "train.epochs", "data").

    c.mesh = mesh = ConfigDict()
    mesh.data = -1  # Devices along the batch; -1: all that mesh.fsdp leaves. train.batch_size is cut into data x fsdp.
    mesh.fsdp = 1  # Devices that large parameters, and what the optimizer keeps of them, are sharded over.
    mesh.fsdp_min_size = 65536  # Entries from which a parameter is large; smaller ones lie whole on every device.

    c.distributed = distributed = ConfigDict()
    # Several processes, each with the same command: host:port of process 0; "auto", where jax finds out by itself
    # (Slurm, TPU pods); "" for one process. Whoever reaches that port can steer the run: private networks only.
    distributed.coordinator = ""
    distributed.processes = 1  # With host:port: how many processes there are,
    distributed.process_id = 0  # and which of them this is. "auto" finds both.
    distributed.heartbeat = 100  # Seconds of silence after which a process counts as dead, and the others end.

    c.profile = profile = ConfigDict()
    profile.start = 10  # First step of the profiler window (trace under <workdir>/profile).
    profile.steps = 0  # Length of the window; 0 for none.

    c.raft = _raft()
    return c


def _raft() -> ConfigDict:
    """Of task "raft": supervised fine-tuning on a few labelled answers, then cycles of sample, verify, keep, fine-tune.

    Of the rest it uses seed, model, optim, init and resume; checkpoint.every (steps between snapshots of a training)
    and keep_last; and, started from a language model, data and eval for the text whose forgetting it measures.
    """
    raft = ConfigDict()
    raft.task = "add"  # add 12+07=019, add_long (1 to size digits), sort 31524>12345, dyck (brackets) or countdown.
    raft.size = 2  # Digits (add, add_long, sort), length in bytes (dyck), given numbers (countdown).
    raft.reversed_answer = False  # Of add: the last digit comes first.
    raft.sft_examples = 300  # Labelled problems. This pool, the next and the held-out one share no problem.
    raft.prompts = 1500  # Problems without labels that cycles sample from.
    raft.held_out = 1000  # Problems that no training sees: what cycles are compared by.
    raft.first_level = 1  # Of add_long: labelled problems have at most this many digits;
    raft.level_rate = 0.5  # cycles go one digit further whenever this share of the hardest samples is right.
    raft.sft_epochs = 50  # Passes over the labelled problems; 0 for none.
    raft.sft_lr = 2e-3  # Peak learning rate of that, after a tenth of its steps; then it falls to 0 in a line.
    raft.sft_trained = "full"  # What it trains: all weights, or adapters (lora; merged before the first cycle).
    raft.cycles = 8
    raft.trained = "lora"  # What cycles train: adapters with AdamW, or all weights (full) with optim.name.
    raft.lora_rank = 16  # r
    raft.lora_alpha = 32.0  # Adapters are scaled by alpha / r.
    raft.lora_dropout = 0.0  # Chance that an input of an adapter is hidden in a step.
    raft.lora_targets = ("w_in", "w_gate", "w_out", "w_up", "w_down")  # Matrices that carry adapters.
    raft.samples = 8  # Completions per prompt and cycle.
    raft.temperature = 1.0  # Of those.
    raft.top_p = 1.0  # Of those: keep the likeliest bytes of this total probability.
    raft.rows = 256  # Completions that are sampled side by side.
    raft.filter = "verified"  # Keep what the verifier accepts; or as many samples at random, the control.
    raft.per_prompt = 4  # Different kept completions per prompt, at most.
    raft.drop_solved = False  # Leave out prompts whose every completion was right.
    # Kept completions per cycle, at most: a number, or one per cycle, the last one held; 0 for all. The control keeps
    # that many; with 0, as many as the verifier would have kept of the control's own samples.
    raft.budget = either(0)
    # Each cycle trains on from the last one's weights (continue); or adapters begin anew from the first weights, on all
    # that was kept on the way here (restart; budget and per_prompt hold for each cycle's share); or they are merged and
    # new ones begun (merge).
    raft.start = "continue"
    raft.anchor = 0.0  # Share of labelled problems mixed into what a cycle trains on.
    raft.batch_size = 128  # Answers per step.
    raft.epochs = 3  # Passes over what was kept,
    raft.min_steps = 5  # or as many as make this many steps,
    raft.max_epochs = 10  # but never more than this.
    raft.lr = "constant"  # Over cycles: constant, exponential, step, wsd, manual or adaptive (see raft/cycle_lr.py).
    raft.lr_base = 1.0  # Learning rate of the first cycle,
    raft.lr_unit = "sft_lr"  # in multiples of sft_lr; or absolute. A card's 5e-5 means nothing to another model.
    raft.lr_decay = 0.85  # Factor per cycle (exponential), or per lr_every cycles (step).
    raft.lr_every = 2  # Cycles that share a rate under step.
    raft.lr_warmup_cycles = 2  # Of wsd: cycles of rising,
    raft.lr_stable_cycles = 2  # staying
    raft.lr_fall_cycles = 4  # and falling
    raft.lr_final = 0.2  # to this fraction.
    raft.lr_rates = ()  # Of manual: absolute rates of the first cycles; the last one is held.
    raft.lr_floor = 1e-6  # No cycle is below it.
    raft.lr_yaml = ""  # A YAML file, or its text, with a schedule in absolute rates, in place of raft.lr.
    raft.warmup = 0  # Steps of a cycle in which the rate rises, at most a tenth of them.
    raft.decay_within = False  # Whether it then falls to 0 in a line within the cycle.
    raft.score = "greedy"  # What cycles are compared by: right answers at temperature 0, or among samples (sampled).
    raft.held_out_samples = 4  # Completions per held-out prompt.
    # Where the held-out rate falls more than 2 standard errors below the best: go on (continue), go back to the best
    # cycle's weights with a lower rate (rollback), or end (stop).
    raft.on_regress = "rollback"
    raft.regress_factor = 0.7  # Of rollback: multiplied into the learning rate each time,
    raft.rollbacks = 2  # and how often it may happen.
    return raft
