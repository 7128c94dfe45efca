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
    # What is run: train (a language model on a corpus) or raft (reward-ranked fine-tuning, section raft).
    c.task = "train"
    c.seed = 0  # Seed of initialisation, data order, dropout and samples.
    # Where compiled programs are kept: auto (~/.cache/fftlm_jax/...), a folder, or "" for nowhere. Where the
    # environment has CI or JAX_COMPILATION_CACHE_DIR set, this is not looked at.
    c.compile_cache = "auto"

    c.model = model = ConfigDict()
    model.seq_len = 1024  # Bytes of a training window (T).
    model.kernel_len = 128  # Taps of a convolution kernel (K).
    model.d_model = 512  # Width of the residual stream (D).
    model.n_layers = 6  # Number of blocks.
    model.mixer = "convolution"  # What mixes time: convolution, or attention (rotary, causal; the baseline).
    model.conv_heads = 8  # Kernels per layer (H); must divide d_model.
    model.kernel_basis = "cosine"  # What the parameters of a kernel are: its cosine spectrum (cosine), or its taps.
    model.projections = True  # Whether a mixer projects its input, gate and output; False is the source's plain block.
    model.attention_heads = 8  # Heads of mixer "attention"; d_model over their number must be even.
    model.ffn_mult = 2.0  # Hidden width of the feed-forward layer, in multiples of d_model.
    # Bytes that the head predicts at once (C); must divide seq_len. Head 0 is the next-byte head.
    model.chunk = 16
    model.memory = "none"  # Spectral memory beside the blocks: none, aligned or polar (see model/spectral_memory.py).
    model.memory_piece = 16  # Bytes whose spectrum the memory takes in at a time.
    # How convolutions are computed: auto, toeplitz, fft or direct; all are equal to round-off.
    model.conv_method = "auto"
    model.dropout = 0.0  # Chance that an output of a block's branches is dropped in a step.
    model.remat = "none"  # What the backward pass computes again: none, or all inner results of the blocks (blocks).
    # Type of the matrix products: float32, bfloat16, or auto; weights, sums and losses are always float32.
    # auto is bfloat16 on TPU, GPU and CPUs with units for it (AMX, AVX-512 BF16), else float32. A run keeps what it
    # began with: config.json says what that was.
    model.dtype = "auto"
    # How float32 products are multiplied: default (bfloat16 on TPU, TF32 on GPU), high or highest (float32).
    # CPUs always multiply them in float32.
    model.precision = "default"

    c.objective = objective = ConfigDict()
    # What is learned: next_byte, chunk (C bytes at each boundary), or chunk_head (that on a trained model).
    objective.name = "chunk"
    # Where chunks are predicted: at all boundaries, or at the last one only (the original).
    objective.positions = "boundaries"
    objective.next_byte_weight = 1.0  # Weight of the next-byte loss beside the chunk loss.
    # Under chunk_head: all is trained, or the head alone (frozen; needs init.checkpoint).
    objective.backbone = "trained"

    c.curriculum = curriculum = ConfigDict()
    # When the cutoff is raised: plateau, schedule (by epoch), or none (full band from the start). The documents' rule
    # lost to "none" in every small trial of ours (experiments/CLAIMS.md), so `configs/full_band.py` is the same setup
    # without it.
    curriculum.rule = "plateau"
    curriculum.ladder = (128, 256, 512, "full")  # Cutoffs to climb: bins (int), fractions of Nyquist (float) or "full".
    curriculum.initial = either("first")  # Cutoff at step 0: "first" for the first rung, or a cutoff.
    curriculum.min_epoch = 2  # Whole epochs that must be done before the first raise.
    curriculum.window = 50  # Losses that the plateau rule looks at, one per optimizer step; even.
    # Relative improvement below which the loss has plateaued. LARGER raises SOONER (the documents say the opposite). At
    # a loss of 2.86, 0.005 per 25 steps is 0.57 nats per 1000 steps: late in a tooth this fires at nearly every check.
    # Raised too fast: make it smaller or the window longer.
    curriculum.threshold = 0.005
    # What is held against the threshold: the improvement (simple), or its upper bound (confidence). Noise alone seldom
    # brings the upper bound below it. Noisy losses then need a much longer window to be raised.
    curriculum.test = "simple"
    # Under test "confidence": the chance, at each check, not to raise too soon (one-sided).
    curriculum.confidence = 0.95
    curriculum.check_every = either("epoch")  # Steps between checks of the plateau rule, or "epoch".
    curriculum.schedule = ((0, 128), (2, 256), (5, 512), (10, "full"))  # Rows (first epoch, cutoff) of rule "schedule".
    # How the cutoff acts: cosine, minimum_phase, or signal (sees the future: refused unless harmless).
    curriculum.method = "cosine"
    curriculum.transition_bins = 32  # Width of the band edge under minimum_phase, in bins.

    c.lr = lr = ConfigDict()
    lr.base = 2e-4  # Peak learning rate.
    # Course of the rate: sawtooth, or cooldown (equal stages, then down to a tenth; no events).
    lr.schedule = "sawtooth"
    # Stages of the sawtooth: (epochs, peak, floor), the last two in multiples of base.
    lr.stages = ((2, 1.0, 0.1), (3, 1.0, 0.1), ("rest", 1.0, 0.05))
    # Answer to a raise: tooth (a new cosine from the peak), pulse (the peak for one step) or none. Better than reducing
    # (factor) everywhere we looked; against none it gains a little where a raise falls in the midst of a stage, else
    # nothing.
    lr.restart = "tooth"
    # Multiplied into the rate for good at a raise: a number, sqrt_ratio, inverse_ratio or adaptive. sqrt_ratio is
    # (old/new cutoff)^0.5, inverse_ratio old/new; adaptive is 0.5, 0.7 or 0.9 by how far the loss rose (above 0.3,
    # above 0.1 nats, or less).
    lr.factor = either(1.0)
    lr.spike_steps = 10  # Losses on either side of a raise that factor "adaptive" compares.
    lr.multipliers = (1.0, 1.52, 1.73)  # Rates of the stages of the cooldown, in multiples of base.
    lr.cooldown = 0.55  # Fraction of training that the fall at the end of the cooldown takes.

    c.optim = optim = ConfigDict()
    # The optimizer: adamw, or muon (Muon for the matrices of the blocks, AdamW for everything else).
    optim.name = "adamw"
    optim.b1 = 0.9  # Decay of AdamW's first moment.
    # Decay of AdamW's second moment. At 0.999 a coefficient that opens late starts with updates 11 times too large.
    optim.b2 = 0.95
    optim.eps = 1e-8  # Added to the root of AdamW's second moment.
    optim.weight_decay = 5e-4  # Decoupled weight decay, on matrices only.
    optim.clip = 1.0  # Global gradient norm beyond which gradients are scaled down.
    # Decay of an average of the weights, evaluated beside them (ema_bpb); 0 for none. In fine-tuning the average is
    # what each training leaves.
    optim.ema_decay = 0.0
    # AdamW's learning rate beside Muon, in multiples of Muon's. Under muon, lr.base is Muon's learning rate, about 100
    # times that of AdamW.
    optim.adam_scale = 0.15
    optim.momentum = 0.95  # Muon's momentum (Nesterov) of the gradients before the polar factor.
    optim.momentum_warmup = 0  # First steps in which Muon's momentum rises from 0.85.
    optim.momentum_cooldown = 0  # Last steps in which Muon's momentum falls back to 0.85.
    optim.polar = "polar_express"  # How the polar factor is found: polar_express, ns5, dion, gram or svd (exact, slow).
    optim.polar_steps = 5  # Iterations for the polar factor.
    # Type of the products for the polar factor: float32, bfloat16, or auto.
    # auto is model.dtype on CPU and bfloat16 elsewhere.
    optim.polar_dtype = "auto"
    optim.shape = "keller"  # Scale of updates by shape: keller max(1, out/in)^0.5, spectral (out/in)^0.5, rms or none.
    optim.neuron_beta2 = 0.0  # Decay of NorMuon's second moment per neuron; 0 for none.
    optim.cautious = True  # Whether Muon's weight decay acts only where the update shrinks the weight anyway.
    optim.brake = 1.0  # Factor on the part of a step that lengthens a matrix: 1 for none, 0.5 is the radial brake.
    # How much of the gradient's radial part is given back (alpha); 0 is Muon. The radial, or spectral, part is the one
    # along the weight. A number, or by group, as (("mixer", 0.05), ("mlp", 0.15)).
    optim.spectral_lr = either(0.0)
    # How the radial part is given back: interpolate, orthogonal, add or tangent (see optim/with_spectral.py).
    optim.spectral_mode = "interpolate"
    # Units of the radial part: those of the gradient (none), or none at all (frobenius, second_moment).
    optim.spectral_normalize = "none"
    optim.spectral_adaptive = "none"  # Whether alpha follows the alignment: none, by its cosine, or by rho (ratio).
    optim.spectral_span = (0.0, 1.0)  # Fractions of training between which alpha acts.
    # Units that alpha was tuned in, over those of a mean loss. 2 x tokens of a step for the source's sweep; they grow
    # with the batch under train.batch_stages.
    optim.grad_units = 1.0

    c.train = train = ConfigDict()
    train.batch_size = 4  # Windows per micro-batch.
    train.accum_steps = 8  # Micro-batches per optimizer step.
    # Multiples of accum_steps, in as many equal stages of training. (1, 2, 3) are those of lr.multipliers' source.
    train.batch_stages = (1,)
    train.steps_per_epoch = 1000  # Optimizer steps that make an "epoch".
    train.epochs = 50  # Epochs of the whole training.
    # Steps in a row with a NaN or infinite loss or gradient that are passed over; one more ends the run.
    train.skip_nonfinite = 0
    train.log_every = 10  # Steps between console lines and TensorBoard points; metrics.jsonl has every step.

    c.eval = evaluation = ConfigDict()
    evaluation.every = 1000  # Steps between evaluations; the last step is always evaluated.
    # Whether to evaluate just before every raise too, so that each cutoff's last state is on record.
    evaluation.before_raise = True
    evaluation.batch_size = 8  # Windows per forward pass.
    evaluation.max_bytes = 262144  # Bytes of the held-out part that are scored, from its beginning; 0 for all.

    c.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # Steps between checkpoints; the last step is always saved.
    checkpoint.keep_last = 2  # Newest checkpoints kept, at least 2: the newest may be cut short.
    checkpoint.retries = 2  # Saves in a row that may fail, as on a full disk, before the run ends.
    checkpoint.keep_best = 1  # Checkpoints of lowest bpb kept besides; an evaluation that is the best yet is saved.

    c.sample = sample = ConfigDict()
    sample.prompt = "def "  # Text that the samples in samples.txt continue.
    sample.bytes = 128  # Length of the sample written at each evaluation; 0 for none.
    # How samples are decoded: byte by byte, a chunk at once, or speculative (as byte, in fewer passes).
    sample.mode = "byte"
    sample.temperature = 0.8  # Temperature of sampling; 0 is greedy.
    sample.top_k = 0  # Keep the k likeliest bytes; 0 keeps all.
    sample.top_p = 0.95  # Keep the likeliest bytes of this total probability.
    sample.min_p = 0.0  # Keep the bytes at least this many times as probable as the likeliest; 0 keeps all.
    sample.repetition_penalty = 1.0  # Above 1, bytes among the last repetition_window become less likely.
    sample.repetition_window = 64  # Last bytes that repetition_penalty looks at.
    sample.longest_run = 0  # Times that a byte may stand in a row; 0 for no limit.
    sample.ascii_only = False  # Whether to write nothing but printable ASCII, tabs and newlines.

    c.data = data = ConfigDict()
    # The corpus: python_stdlib (this Python's standard library), files (path), or a text of `fftlm download`.
    data.source = "python_stdlib"
    # A file, a folder or a glob, also .gz, .bz2, .xz, .zst, .zip, .jsonl, .parquet; implies files. Packed files are
    # unpacked once (data.cache); hidden files below a folder are left out.
    data.path = ""
    # Fraction held out: of a file its end, of many files by a hash of their names, of documents by one of theirs.
    data.held_out = 0.1
    data.text_field = "text"  # Field (.jsonl) or column (.parquet) that holds documents; "" reads these files as bytes.
    data.separator = "\n\n"  # Bytes between documents.
    data.cache = "auto"  # Folder of what is unpacked and downloaded; auto: fftlm_jax/texts in the user's cache folder.

    c.init = init = ConfigDict()
    init.checkpoint = ""  # Run directory (or checkpoints/<step> in it) whose weights to start from.
    init.epoch = 0  # Age in epochs of weights without controller state: bounds the starting cutoff from below.

    c.resume = resume = ConfigDict()
    resume.mode = "auto"  # auto: resume what is there; never: refuse a non-empty folder; must: refuse an empty one.
    resume.allow = ()  # What may change on resume: keys or whole sections, such as ("lr", "train.epochs", "data").

    c.mesh = mesh = ConfigDict()
    # Devices along the batch; -1 for all that mesh.fsdp leaves. train.batch_size is cut into data x fsdp parts; in
    # fine-tuning, the answers of a step are cut over as many devices as divide them.
    mesh.data = -1
    mesh.fsdp = 1  # Devices that large parameters, and what the optimizer keeps of them, are sharded over.
    mesh.fsdp_min_size = 65536  # Entries from which a parameter is large; smaller ones lie whole on every device.

    c.distributed = distributed = ConfigDict()
    # host:port of process 0; "auto" where jax finds it (Slurm, TPU pods); "" for one process. Several processes are
    # started with the same command. Whoever reaches that port can steer the run: private networks only.
    distributed.coordinator = ""
    distributed.processes = 1  # How many processes there are, with host:port.
    distributed.process_id = 0  # Which of them this is, from 0, with host:port.
    distributed.heartbeat = 100  # Seconds of silence after which a process counts as dead, and the others end.

    c.profile = profile = ConfigDict()
    profile.start = 10  # First step of the profiler window (trace under <workdir>/profile).
    profile.steps = 0  # Length of the profiler window in steps; 0 for none.

    c.raft = _raft()
    return c


def _raft() -> ConfigDict:
    """The keys of task "raft": supervised fine-tuning on a few labelled answers, then cycles of sampling and training.

    Of the other sections the task uses seed, model, optim, init, resume, train.skip_nonfinite and mesh.data;
    checkpoint.every (steps between snapshots of a training) and keep_last; and, started from a language model, data and
    eval for the text whose forgetting it measures.
    """
    raft = ConfigDict()
    # The task: add 12+07=019, add_long (1 to size digits), sort 31524>12345, dyck (brackets) or countdown.
    raft.task = "add"
    raft.size = 2  # Digits (add, add_long, sort), length in bytes (dyck), given numbers (countdown).
    raft.reversed_answer = False  # Whether answers of add begin with their last digit.
    # Labelled problems of supervised fine-tuning. This pool, the next and the held-out one share no problem.
    raft.sft_examples = 300
    raft.prompts = 1500  # Problems without labels that cycles sample from.
    raft.held_out = 1000  # Problems that no training sees: what cycles are compared by.
    raft.first_level = 1  # Digits that labelled problems of add_long have at most.
    raft.level_rate = 0.5  # Share of right samples of the hardest level at which cycles go one digit further.
    raft.sft_epochs = 50  # Passes over the labelled problems; 0 for none.
    raft.sft_lr = 2e-3  # Peak rate of supervised fine-tuning, after a tenth of its steps; then it falls to 0 in a line.
    # What supervised fine-tuning trains: all weights (full), or adapters (lora; merged before cycle 1).
    raft.sft_trained = "full"
    raft.cycles = 8  # Cycles of sample, verify, keep and train.
    raft.trained = "lora"  # What cycles train: adapters with AdamW (lora), or all weights with optim.name (full).
    raft.lora_rank = 16  # Rank of the adapters (r).
    raft.lora_alpha = 32.0  # Adapters are scaled by lora_alpha / lora_rank.
    raft.lora_dropout = 0.0  # Chance that an input of an adapter is hidden in a step.
    raft.lora_targets = ("w_in", "w_gate", "w_out", "w_up", "w_down")  # Matrices that carry adapters.
    raft.samples = 8  # Completions per prompt and cycle.
    raft.temperature = 1.0  # Temperature of the completions.
    raft.top_p = 1.0  # Keep the likeliest bytes of this total probability in completions.
    raft.rows = 256  # Completions that are sampled side by side.
    # What is kept: what the verifier accepts (verified), or as many at random (random, the control).
    raft.filter = "verified"
    raft.per_prompt = 4  # Different kept completions per prompt, at most.
    raft.drop_solved = False  # Whether to leave out prompts whose every completion was right.
    # Kept completions per cycle, at most: a number, or one per cycle, the last one held; 0 for all. The control keeps
    # that many; with 0, as many as the verifier would have kept of the control's own samples.
    raft.budget = either(0)
    # Where a cycle starts: continue, restart or merge. continue: from the last one's weights; restart: adapters begin
    # anew from the first weights, on all that was kept on the way here (budget and per_prompt hold for each cycle's
    # share); merge: they are merged and new ones begun.
    raft.start = "continue"
    raft.anchor = 0.0  # Share of labelled problems mixed into what a cycle trains on.
    raft.batch_size = 128  # Answers per step.
    raft.accum_steps = 1  # Micro-batches that the answers of a step are cut into; must divide batch_size.
    raft.epochs = 3  # Passes of a cycle over what was kept.
    raft.min_steps = 5  # Steps of a cycle, at least, by more passes.
    raft.max_epochs = 10  # Passes of a cycle, at most.
    # Rate over cycles: constant, exponential, step, wsd, manual or adaptive (see raft/cycle_lr.py).
    raft.lr = "constant"
    raft.lr_base = 1.0  # Rate of the first cycle, in lr_unit.
    # Unit of lr_base: multiples of sft_lr, or absolute. A card's 5e-5 means nothing to another model.
    raft.lr_unit = "sft_lr"
    raft.lr_decay = 0.85  # Factor per cycle (exponential), or per lr_every cycles (step).
    raft.lr_every = 2  # Cycles that share a rate under step.
    raft.lr_warmup_cycles = 2  # Cycles in which the rate of wsd rises.
    raft.lr_stable_cycles = 2  # Cycles in which the rate of wsd stays at its peak.
    raft.lr_fall_cycles = 4  # Cycles in which the rate of wsd falls.
    raft.lr_final = 0.2  # Fraction of its peak that the rate of wsd falls to.
    raft.lr_rates = ()  # Absolute rates of the first cycles under manual; the last one is held.
    raft.lr_floor = 1e-6  # Rate that no cycle is below.
    raft.lr_yaml = ""  # A YAML file, or its text, with a schedule in absolute rates, in place of raft.lr.
    raft.warmup = 0  # Steps of a cycle in which the rate rises, at most a tenth of them.
    raft.decay_within = False  # Whether the rate falls to 0 in a line within a cycle, after its warm-up.
    # What cycles are compared by: right answers at temperature 0 (greedy), or among samples (sampled).
    raft.score = "greedy"
    raft.held_out_samples = 4  # Completions per held-out prompt.
    # Where the held-out rate falls 2 standard errors below the best: continue, rollback or stop. rollback goes back to
    # the best cycle's weights with a lower rate.
    raft.on_regress = "rollback"
    raft.regress_factor = 0.7  # Multiplied into the rate at each rollback.
    raft.rollbacks = 2  # Rollbacks, at most.
    return raft
