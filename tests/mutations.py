"""Plants faults in copies of the repository, one at a time, and shows that the suite catches each of them.

    python -m tests.mutations                     every fault of the table, in order
    python -m tests.mutations --list              what they are, and the tests that catch them
    python -m tests.mutations --only=sawtooth     those with this in their name
    python -m tests.mutations --root=DIR          the same faults in another checkout
    python -m tests.mutations --tests=FILE.json   {name: test} where another checkout names its tests otherwise

A fault is a slip of one line. It counts as caught only if its test fails in the copy: a copy that cannot be imported, a
test that is not there or cannot be set up shows nothing about the property, and is an error. The same tests must pass
before anything is planted. Exit code 0 if every fault was caught, 1 if not.

This is no part of the suite, since each fault starts a process of its own: about ten seconds each.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "runs")  # All else may be what some test reads.
LIMIT = 300.0  # Seconds for one test; for all tests of the unchanged copy, for each.


class Fault(NamedTuple):
    """A slip to plant.

    Attributes:
        name: what is wrong then, in plain words.
        file: relative to the root.
        old: a piece of its source that is there exactly once.
        new: what takes its place.
        caught_by: pytest's name of the test that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    caught_by: str


FAULTS = (
    # Mathematics of convolutions and band limits.
    Fault(
        "the FFT convolution looks one byte ahead",
        "fftlm_jax/spectral/convolve.py",
        ".swapaxes(1, 2)[:, :seq_len]",
        ".swapaxes(1, 2)[:, 1 : seq_len + 1]",
        "tests/spectral/test_convolve.py::test_a_changed_input_moves_no_earlier_output",
    ),
    Fault(
        "products of bfloat16 numbers are added up in bfloat16",
        "fftlm_jax/runtime/platform.py",
        "preferred_element_type=jnp.float32)",
        "preferred_element_type=jnp.bfloat16)",
        "tests/model/test_products.py::test_results_and_both_gradients_are_those_of_rounded_operands_exactly_added",
    ),
    Fault(
        "the gradient of a matrix is rounded to bfloat16",
        "fftlm_jax/model/layers.py",
        "dkernel_DE.astype(like_kernel.dtype)",
        "dkernel_DE.astype(jnp.bfloat16).astype(like_kernel.dtype)",
        "tests/model/test_products.py::test_results_and_both_gradients_are_those_of_rounded_operands_exactly_added",
    ),
    Fault(
        "results of products lie as they like",
        "fftlm_jax/runtime/platform.py",
        "return _by_rows(jnp.matmul(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32))",
        "return jnp.matmul(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32)",
        "tests/model/test_products.py::test_operands_and_results_may_lie_by_columns",
    ),
    Fault(
        "a resumed run takes the type of the new processor",
        "fftlm_jax/training/run_parts.py",
        "if saved_config is not None:\n        config = read_config",
        "if saved_config is None:\n        config = read_config",
        "tests/test_matrix_units.py::test_a_run_keeps_the_type_it_began_with_on_another_processor_and_says_so",
    ),
    Fault(
        "decoding multiplies matrices that were not rounded",
        "fftlm_jax/model/layers.py",
        "return jax.lax.reduce_precision(x.astype(jnp.float32), digits.nexp, digits.nmant)",
        "return x.astype(jnp.float32)",
        "tests/model/test_streaming.py::test_bfloat16_gives_the_hidden_states_of_the_full_forward_pass",
    ),
    Fault(
        "the Toeplitz form leaves out the farthest block",
        "fftlm_jax/spectral/convolve.py",
        "for j in range(1, min(J, N)):",
        "for j in range(1, min(J, N) - 1):",
        "tests/spectral/test_convolve.py::test_values_equal_numpy",
    ),
    Fault(
        "the Toeplitz matrix stands one tap off",
        "fftlm_jax/spectral/convolve.py",
        "(window - block - K + 1, block + 1)",
        "(window - block - K + 2, block)",
        "tests/spectral/test_convolve.py::test_toeplitz_matrix_is_the_convolution_matrix",
    ),
    Fault(
        "the cosine mask passes one coefficient too many",
        "fftlm_jax/spectral/low_pass.py",
        "(np.arange(kernel_len) < passed)",
        "(np.arange(kernel_len) <= passed)",
        "tests/spectral/test_low_pass.py::test_gradients_of_masked_coefficients_are_exactly_zero",
    ),
    Fault(
        "the minimum-phase filter does not fold its cepstrum",
        "fftlm_jax/spectral/low_pass.py",
        "cepstrum[1 : n // 2] *= 2.0",
        "cepstrum[1 : n // 2] *= 1.0",
        "tests/spectral/test_low_pass.py::test_minimum_phase_has_the_wanted_magnitude",
    ),
    Fault(
        "a cutoff is a fraction of one bin too many",
        "fftlm_jax/config/cutoff.py",
        "cutoff / (bins - 1)) if bins > 1",
        "cutoff / bins) if bins > 1",
        "tests/test_cutoff.py::test_fractions_and_coefficients",
    ),
    # The model and what it is scored by.
    Fault(
        "attention sees the positions to come",
        "fftlm_jax/model/mixers.py",
        "is_causal=True",
        "is_causal=False",
        "tests/model/test_causality.py::"
        "test_every_mixer_and_memory_is_causal_to_the_last_bit[{'mixer': 'attention'}-70]",
    ),
    Fault(
        "attention sees the next position while decoding",
        "fftlm_jax/model/mixers.py",
        "(lag_SW >= 0)",
        "(lag_SW >= -1)",
        "tests/model/test_streaming.py::test_later_bytes_of_a_block_change_nothing_before_them[attention]",
    ),
    Fault(
        "the sliding window of attention is one byte too long",
        "fftlm_jax/model/mixers.py",
        "(lag_SW < self.seq_len)",
        "(lag_SW <= self.seq_len)",
        "tests/model/test_streaming.py::test_attention_slides_a_window_through_them",
    ),
    Fault(
        "the spectral memory is read a piece early",
        "fftlm_jax/model/spectral_memory.py",
        "return (jnp.arange(length) + 1) // piece",
        "return (jnp.arange(length) + piece) // piece",
        "tests/model/test_causality.py::test_every_mixer_and_memory_is_causal_to_the_last_bit[{'memory': 'polar'}-79]",
    ),
    Fault(
        "the spectral memory is read a byte late while decoding",
        "fftlm_jax/model/spectral_memory.py",
        "(past.phase_B[:, None] + 1 + jnp.arange(S)) // P",
        "(past.phase_B[:, None] + jnp.arange(S)) // P",
        "tests/model/test_streaming.py::"
        "test_blocks_of_any_sizes_give_the_hidden_states_of_the_full_forward_pass[polar memory]",
    ),
    Fault(
        "decoding keeps one byte too many of a row",
        "fftlm_jax/model/streaming.py",
        "jax.lax.dynamic_slice_in_dim(row, n, length, axis=-1)",
        "jax.lax.dynamic_slice_in_dim(row, n + 1, length, axis=-1)",
        "tests/model/test_streaming.py::test_rows_that_take_in_different_numbers_of_bytes_are_rows_alone[convolution]",
    ),
    Fault(
        "decoding keeps the hidden state of the byte before",
        "fftlm_jax/model/streaming.py",
        "trail.hidden_BTD[jnp.arange(batch), count_B]",
        "trail.hidden_BTD[jnp.arange(batch), count_B - 1]",
        "tests/model/test_streaming.py::test_keeping_nothing_or_everything_is_exact[convolution]",
    ),
    Fault(
        "the targets of chunks begin one byte early",
        "fftlm_jax/model/loss.py",
        "model.head.chunk(boundary), targets[:, start:]",
        "model.head.chunk(boundary), targets[:, start - 1 : -1]",
        "tests/model/test_objectives.py::test_losses_equal_a_numpy_cross_entropy",
    ),
    Fault(
        "the next byte is scored against the one just read",
        "fftlm_jax/model/loss.py",
        "targets[:, first + 1 : T + 1]",
        "targets[:, first:T]",
        "tests/model/test_objectives.py::test_losses_equal_a_numpy_cross_entropy",
    ),
    Fault(
        "the first byte of the padding is scored",
        "fftlm_jax/model/loss.py",
        "(jnp.arange(W)[None] < valid_B[:, None])",
        "(jnp.arange(W)[None] <= valid_B[:, None])",
        "tests/model/test_objectives.py::test_padding_has_no_weight_and_all_else_has",
    ),
    Fault(
        "the objective forgets the weight of the next byte",
        "fftlm_jax/model/loss.py",
        "return chunk + objective.next_byte_weight * next_byte if",
        "return chunk + next_byte if",
        "tests/model/test_objectives.py::test_the_weight_of_the_next_byte_counts",
    ),
    Fault(
        "adapters are scaled by alpha alone",
        "fftlm_jax/model/lora.py",
        "return self.alpha / self.rank",
        "return self.alpha",
        "tests/model/test_lora.py::test_merging_is_the_low_rank_product_scaled_by_alpha_over_r",
    ),
    Fault(
        "fresh adapters change the weights already",
        "fftlm_jax/model/lora.py",
        '"b": jnp.zeros((*lead',
        '"b": jnp.ones((*lead',
        "tests/model/test_lora.py::test_fresh_adapters_change_nothing_to_the_last_bit",
    ),
    # The curriculum.
    Fault(
        "the plateau rule raises while the loss falls",
        "fftlm_jax/curriculum/plateau.py",
        "improvement >= plateau_threshold",
        "improvement <= plateau_threshold",
        "tests/curriculum/test_curriculum.py::test_adaptive_cutoff",
    ),
    Fault(
        "a raise comes an epoch before the first that may have one",
        "fftlm_jax/curriculum/plateau.py",
        "epoch < min_epoch_before_raise",
        "epoch + 1 < min_epoch_before_raise",
        "tests/curriculum/test_curriculum.py::test_adaptive_cutoff",
    ),
    Fault(
        "a raise goes to the top at once",
        "fftlm_jax/curriculum/plateau.py",
        "return rung, True",
        "return freq_bins, True",
        "tests/curriculum/test_curriculum.py::test_adaptive_cutoff",
    ),
    Fault(
        "the controller forgets its losses in a checkpoint",
        "fftlm_jax/curriculum/controller.py",
        '"losses": self.losses,',
        '"losses": [],',
        "tests/faults/test_points.py::test_a_run_that_dies_at_every_place_ends_as_if_it_had_not",
    ),
    Fault(
        "losses from before a raise count after it",
        "fftlm_jax/curriculum/controller.py",
        "self.cutoff, self.losses = new, []",
        "self.cutoff = new",
        "tests/curriculum/test_curriculum.py::test_the_history_is_cleared_on_a_raise",
    ),
    Fault(
        "the factor of a raise is turned over",
        "fftlm_jax/curriculum/lr_at_raise.py",
        "ratio = old_cutoff / new_cutoff",
        "ratio = new_cutoff / old_cutoff",
        "tests/curriculum/test_curriculum.py::test_answer_to_raise",
    ),
    # Optimizers.
    Fault(
        "a tooth of the sawtooth begins a step late",
        "fftlm_jax/optim/sawtooth.py",
        'jnp.searchsorted(starts, count, side="right")',
        'jnp.searchsorted(starts, count, side="left")',
        "tests/optim/test_sawtooth.py::test_values",
    ),
    Fault(
        "a restart of the sawtooth is anchored at the step after it",
        "fftlm_jax/optim/sawtooth.py",
        "jnp.where(restart, state.count, state.anchor)",
        "jnp.where(restart, state.count + 1, state.anchor)",
        "tests/optim/test_sawtooth.py::test_restart_lasts_to_the_end_of_the_stage_only",
    ),
    Fault(
        "a reduction of the sawtooth lasts for one step",
        "fftlm_jax/optim/sawtooth.py",
        "SawtoothState(optax.safe_increment(state.count), anchor, scale, lr)",
        "SawtoothState(optax.safe_increment(state.count), anchor, state.scale, lr)",
        "tests/optim/test_sawtooth.py::test_reductions_compound_and_stay",
    ),
    Fault(
        "Muon's momentum does not look ahead",
        "fftlm_jax/optim/muon_links.py",
        "return b * m + (1 - b) * g if nesterov else m",
        "return m",
        "tests/optim/test_momentum.py::test_fifty_steps_against_numpy",
    ),
    Fault(
        "polar iterations go on with the Gram matrix of the first step",
        "fftlm_jax/optim/polar.py",
        "(b * gram + c * (gram @ gram)) @ x, None",
        "(b * gram + c * (gram @ gram)) @ x, gram",
        "tests/optim/test_polar.py::test_singular_values_are_in_the_band",
    ),
    Fault(
        "the polar factor of a tall matrix is that of its reversal",
        "fftlm_jax/optim/polar.py",
        "unit_frobenius(jnp.swapaxes(x, -1, -2) if tall else x)",
        "unit_frobenius(x.reshape(*x.shape[:-2], x.shape[-1], x.shape[-2]) if tall else x)",
        "tests/optim/test_polar.py::test_gram_and_transposes_and_rotations",
    ),
    Fault(
        "the radial part is added where it is to be taken out",
        "fftlm_jax/optim/with_spectral.py",
        "x = gradient - jnp.asarray(alpha)",
        "x = gradient + jnp.asarray(alpha)",
        "tests/optim/test_with_spectral.py::test_modes_are_their_formulas",
    ),
    Fault(
        "the variance of neurons is taken along the other axis",
        "fftlm_jax/optim/muon_links.py",
        "axis=-2 if is_out else -1",
        "axis=-1 if is_out else -2",
        "tests/optim/test_neuron_variance.py::test_against_numpy",
    ),
    Fault(
        "the brake acts on steps that shorten the weight",
        "fftlm_jax/optim/brake.py",
        "jnp.where(along > 0, outward, inward)",
        "jnp.where(along < 0, outward, inward)",
        "tests/optim/test_brake.py::test_change_of_the_norm",
    ),
    Fault(
        "cautious decay acts where the update lengthens the weight",
        "fftlm_jax/optim/muon_links.py",
        "product > 0 if strict else product >= 0",
        "product < 0 if strict else product <= 0",
        "tests/optim/test_weight_decay.py::test_truth_table",
    ),
    Fault(
        "weight decay reaches the norms",
        "fftlm_jax/model/parameters.py",
        'MUON_GROUPS | {"head"}',
        'MUON_GROUPS | {"head", "norm"}',
        "tests/optim/test_build.py::test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest",
    ),
    Fault(
        "gradients are not clipped",
        "fftlm_jax/training/optimizer.py",
        "optax.chain(optax.clip_by_global_norm(config.clip), *before",
        "optax.chain(*before",
        "tests/optim/test_build.py::test_it_is_adamw_with_the_sawtooth",
    ),
    # Data.
    Fault(
        "the order of the windows does not depend on the seed",
        "fftlm_jax/data/windows.py",
        "int(_mix(np.uint64(self.seed), np.uint64(2 * p + 1)))",
        "int(_mix(np.uint64(0), np.uint64(2 * p + 1)))",
        "tests/data/test_data.py::test_the_order_of_a_pass_is_a_function_of_the_seed",
    ),
    Fault(
        "every pass has the order of the first",
        "fftlm_jax/data/windows.py",
        "np.uint64(2 * p + 1)",
        "np.uint64(1)",
        "tests/data/test_data.py::test_passes_differ_in_order_and_phase",
    ),
    Fault(
        "every process reads the windows of the first",
        "fftlm_jax/data/windows.py",
        ".reshape(micro_batches, batch_size)[:, rows]",
        ".reshape(micro_batches, batch_size)[:, : len(range(batch_size)[rows])]",
        "tests/data/test_data.py::test_the_rows_of_all_processes_make_the_whole_batch",
    ),
    Fault(
        "evaluation windows leave bytes out between them",
        "fftlm_jax/data/windows.py",
        "starts = range(0, len(data) - 1, seq_len)",
        "starts = range(0, len(data) - 1, seq_len + chunk)",
        "tests/data/test_data.py::test_evaluation_windows_join_without_gap_or_overlap",
    ),
    Fault(
        "a held-out byte is trained on",
        "fftlm_jax/data/corpus.py",
        "return whole[:cut], whole[cut:end]",
        "return whole[: cut + 1], whole[cut:end]",
        "tests/data/test_data.py::test_the_end_of_a_single_file_is_held_out",
    ),
    Fault(
        "a document falls on another side than its content says",
        "fftlm_jax/data/unpacked.py",
        "places = split(lambda number, place: place < held_out)",
        "places = split(lambda number, place: number % 9 == 0)",
        "tests/data/test_packed_texts.py::test_documents_stay_whole_on_the_side_that_their_content_decides",
    ),
    Fault(
        "a bomb is unpacked",
        "fftlm_jax/data/formats.py",
        "_LARGEST_RATIO, _ALLOWANCE = 100, 64 << 20",
        "_LARGEST_RATIO, _ALLOWANCE = 10**9, 64 << 20",
        "tests/data/test_packed_texts.py::test_a_bomb_is_refused",
    ),
    Fault(
        "bytes of a part of a file are read from its beginning",
        "fftlm_jax/data/byte_sequence.py",
        "piece.start + piece.size - (end - at)",
        "piece.start",
        "tests/data/test_corpus.py::test_a_corpus_is_its_files_one_behind_the_other",
    ),
    # Training, and going on with it.
    Fault(
        "the windows of a resumed run start over",
        "fftlm_jax/training/loop.py",
        "Prefetcher(parts.windows.batch, state.step)",
        "Prefetcher(parts.windows.batch, 0)",
        "tests/faults/test_same_run.py::test_a_run_may_move_and_be_watched_otherwise",
    ),
    Fault(
        "dropout is the same in every step",
        "fftlm_jax/training/step.py",
        "jax.random.fold_in(dropout_key, state.step)",
        "jax.random.fold_in(dropout_key, 0)",
        "tests/training/test_step.py::test_dropout_repeats_with_the_step_and_differs_between_steps",
    ),
    Fault(
        "accumulated gradients are not divided by their number",
        "fftlm_jax/training/step.py",
        "jax.tree.map(lambda x: x / accum_steps, totals)",
        "jax.tree.map(lambda x: x, totals)",
        "tests/training/test_step.py::test_accumulated_batches_equal_one_large_batch",
    ),
    Fault(
        "a step that is not finite updates the weights",
        "fftlm_jax/training/step.py",
        "jnp.where(committed, new, old)",
        "jnp.where(committed, new, new)",
        "tests/training/test_step.py::test_a_nonfinite_step_changes_nothing_and_halts",
    ),
    Fault(
        "the average of the weights keeps its bias",
        "fftlm_jax/checkpoints/contents.py",
        "return optax.tree.bias_correction(ema.ema, decay, ema.count)",
        "return ema.ema",
        "tests/training/test_step.py::test_the_average_of_the_weights_is_a_mean_from_the_first_step_on",
    ),
    Fault(
        "a checkpoint is restored whatever its manifest says",
        "fftlm_jax/checkpoints/saved_step.py",
        "fault = manifest_fault(checkpoints / str(step))",
        "fault = None",
        "tests/training/test_checkpoint.py::test_every_damaged_file_is_found_and_the_step_before_is_used",
    ),
    Fault(
        "a changed file of the same size is not noticed",
        "fftlm_jax/checkpoints/saved_step.py",
        "file.stat().st_size != size or file_sha256(file) != digest",
        "file.stat().st_size != size",
        "tests/faults/test_byte_flips.py::test_every_changed_byte_is_found",
    ),
    Fault(
        "a file that no manifest lists is accepted",
        "fftlm_jax/checkpoints/saved_step.py",
        'is not in its manifest" if unlisted else None',
        'is not in its manifest" if False else None',
        "tests/faults/test_disk.py::test_a_file_that_the_manifest_does_not_list_is_a_fault",
    ),
    Fault(
        "only one of the last checkpoints is kept",
        "fftlm_jax/checkpoints/save_restore.py",
        "set(steps[: -self._keep_last])",
        "set(steps[:-1])",
        "tests/training/test_checkpoint.py::test_the_last_and_the_best_survive_a_restart",
    ),
    Fault(
        "old checkpoints are deleted before the newest is whole",
        "fftlm_jax/checkpoints/save_restore.py",
        "preservation_policy=retention.LatestN(),",
        "preservation_policy=retention.LatestN(1),",
        "tests/faults/test_points.py::test_a_run_that_dies_at_every_place_ends_as_if_it_had_not",
    ),
    Fault(
        "the best checkpoint is forgotten",
        "fftlm_jax/checkpoints/save_restore.py",
        "best = {-negative for _, negative in ranked[: self._keep_best]}",
        "best = set()",
        "tests/training/test_checkpoint.py::test_the_last_and_the_best_survive_a_restart",
    ),
    Fault(
        "a resumed run takes any score for the best yet",
        "fftlm_jax/training/progress.py",
        'self.best_bpb = math.inf if saved["best_bpb"] is None else saved["best_bpb"]',
        "self.best_bpb = math.inf",
        "tests/training/test_checkpoint.py::test_progress_goes_on_from_what_was_saved",
    ),
    Fault(
        "weights that are not finite are saved",
        "fftlm_jax/checkpoints/save_restore.py",
        "jnp.isfinite(array).all()",
        "jnp.isfinite(array).any()",
        "tests/faults/test_disk.py::test_nothing_that_is_not_finite_is_ever_saved",
    ),
    Fault(
        "the last save may fail",
        "fftlm_jax/training/progress.py",
        "if must or self._failed > self._retries:",
        "if self._failed > self._retries:",
        "tests/training/test_failed_saves.py::test_the_last_save_must_not_fail",
    ),
    Fault(
        "records of steps that are done again stay in the metrics",
        "fftlm_jax/recording/metrics.py",
        "self._file = AppendedFile(file, size)",
        "self._file = AppendedFile(file)",
        "tests/training/test_metrics.py::test_records_are_written_in_order_and_truncated_on_resume",
    ),
    Fault(
        "two processes may work in one run directory",
        "fftlm_jax/checkpoints/run_directory.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/faults/test_disk.py::test_a_lock_names_its_holder_and_outlives_no_process",
    ),
    Fault(
        "a resumed run may change whatever still fits its arrays",
        "fftlm_jax/config/reading.py",
        "if not _is_allowed(name, config.resume.allow) or _is_fixed(name)]",
        "if _is_fixed(name)]",
        "tests/faults/test_same_run.py::test_another_run_is_no_continuation",
    ),
    # Generation.
    Fault(
        "speculation accepts with p and q exchanged",
        "fftlm_jax/generation/sampling.py",
        "uniform_X < jnp.exp(log_p - log_q)",
        "uniform_X < jnp.exp(log_q - log_p)",
        "tests/generation/test_drafts.py::test_a_byte_that_stands_or_is_drawn_anew_follows_the_target",
    ),
    Fault(
        "top_p keeps one byte too few",
        "fftlm_jax/generation/sampling.py",
        "before_V = jnp.cumsum(probability_V) - probability_V",
        "before_V = jnp.cumsum(probability_V)",
        "tests/generation/test_sampling.py::test_top_p_keeps_the_smallest_sufficient_set",
    ),
    Fault(
        "the repetition penalty looks beyond its window",
        "fftlm_jax/generation/sampling.py",
        "recent_R[len(recent_R) - min(config.repetition_window, len(recent_R)) :]",
        "recent_R",
        "tests/generation/test_sampling.py::test_the_penalty_looks_at_its_window_alone",
    ),
    Fault(
        "a run may be one byte longer than its limit",
        "fftlm_jax/generation/sampling.py",
        "jnp.all(recent_R[-longest:] == last)",
        "jnp.all(recent_R[-longest - 1 :] == last)",
        "tests/generation/test_sampling.py::test_runs_end_at_the_limit",
    ),
    Fault(
        "a stop string that arrives in two pieces is missed",
        "fftlm_jax/generation/text.py",
        "text = self._held + data",
        "text = data",
        "tests/generation/test_text.py::test_stop_strings_end_a_text_wherever_it_is_cut_into_pieces",
    ),
    # Reward-ranked fine-tuning.
    Fault(
        "the verifier of sums accepts a right beginning",
        "fftlm_jax/raft/tasks/task.py",
        "if len(completion) != len(expected) or not completion.endswith(END) or not completion[:-1].isdigit():\n"
        "        return MALFORMED\n"
        "    return RIGHT if completion == expected else WRONG",
        "if not completion.endswith(END) or not completion[:-1].isdigit():\n"
        "        return MALFORMED\n"
        "    return RIGHT if expected.startswith(completion[:-1]) else WRONG",
        "tests/raft/test_tasks.py::test_the_negative_corpus_scores_nothing",
    ),
    Fault(
        "the verifier of brackets accepts what is left open",
        "fftlm_jax/raft/tasks/dyck.py",
        'RIGHT if _still_open(prompt + written) == b"" else WRONG',
        "RIGHT if _still_open(prompt + written) is not None else WRONG",
        "tests/raft/test_tasks.py::test_dyck_agrees_with_a_brute_force_over_all_texts",
    ),
    Fault(
        "wrong answers are kept",
        "fftlm_jax/raft/selection.py",
        "for c in candidates if c.ok and c.prompt not in solved",
        "for c in candidates if c.prompt not in solved",
        "tests/raft/test_selection.py::test_nothing_wrong_is_ever_kept_nor_topped_up",
    ),
    Fault(
        "held-out problems are asked in training in another way",
        "fftlm_jax/raft/tasks/task.py",
        "_Read(problem, task.key(problem.prompt),",
        "_Read(problem, problem.prompt,",
        "tests/raft/test_pools.py::test_pools_are_full_and_share_no_question",
    ),
    Fault(
        "the adapters of a cycle are added to those of the cycle before",
        "fftlm_jax/raft/cycle_weights.py",
        'before = self.journal.parent(cycle) if self.raft.start == "merge" else 0',
        "before = self.journal.parent(cycle)",
        "tests/raft/test_loop.py::test_start_policies",
    ),
    Fault(
        "the journal takes a changed file for what it wrote",
        "fftlm_jax/raft/journal.py",
        "if content is not None and _sha256(content) == known[name]:",
        "if content is not None:",
        "tests/raft/test_journal.py::test_a_damaged_phase_of_a_cycle_under_way_is_made_again",
    ),
    Fault(
        "the learning rate of cycles decays a cycle early",
        "fftlm_jax/raft/cycle_lr.py",
        "self.decay ** (cycle - 1)",
        "self.decay**cycle",
        "tests/raft/test_cycle_lr.py::test_exact_values",
    ),
    Fault(
        "any fall of the held-out rate is a regress",
        "fftlm_jax/raft/selection.py",
        "best.held_out.rate - two_errors(newest, best)",
        "best.held_out.rate",
        "tests/raft/test_planning.py::test_a_fall_counts_beyond_two_standard_errors_of_the_difference",
    ),
    Fault(
        "samples of one prompt count as independent",
        "fftlm_jax/raft/measure.py",
        "by_prompt = np.asarray(right_PK, float).mean(axis=1)",
        "by_prompt = np.asarray(right_PK, float).ravel()",
        "tests/raft/test_statistics.py::test_the_error_takes_prompts_as_clusters",
    ),
    # Many devices.
    Fault(
        "parameters are cut along their layers",
        "fftlm_jax/parallel/sharding.py",
        'first = 1 if path[0] == "blocks" else 0',
        "first = 0",
        "tests/parallel/test_many_devices.py::test_a_stack_is_never_cut_along_its_layers",
    ),
    Fault(
        "the moments of large parameters are whole on every device",
        "fftlm_jax/parallel/sharding.py",
        "for first in range(len(names)):",
        "for first in range(1):",
        "tests/parallel/test_many_devices.py::test_large_parameters_and_their_moments_are_cut",
    ),
    Fault(
        "gradients of several devices are added up where their mean was meant",
        "fftlm_jax/parallel/sharding.py",
        "jax.lax.pmean(function(batch, *shared), BATCH_AXES)",
        "jax.lax.psum(function(batch, *shared), BATCH_AXES)",
        "tests/parallel/test_many_devices.py::test_it_learns_what_one_device_does",
    ),
    Fault(
        "gathered parameters are kept for the backward pass",
        "fftlm_jax/parallel/sharding.py",
        'return primitive.name != "sharding_constraint" and settings.get("name") != _WHOLE',
        "return True",
        "tests/parallel/test_many_devices.py::"
        "test_sharded_parameters_are_gathered_in_the_forward_and_again_in_the_backward_pass",
    ),
    # Plans for machines that are not there.
    Fault(
        "a program for a TPU is written for the host",
        "fftlm_jax/runtime/platform.py",
        "return _TARGET.value or jax.default_backend()",
        "return jax.default_backend()",
        "tests/plan/test_platform.py::test_a_step_for_a_tpu_is_the_same_on_every_host",
    ),
    Fault(
        "products of the backward pass keep the platform's precision",
        "fftlm_jax/training/step.py",
        "with products_at(precision):",
        'with products_at("default"):',
        "tests/plan/test_platform.py::test_a_precision_holds_for_every_product_of_every_program",
    ),
    Fault(
        "a collective in a loop counts once",
        "fftlm_jax/plan/program_text.py",
        "count * _trips(computations, instruction)",
        "count",
        "tests/plan/test_program_text.py::test_loops_within_loops_multiply_and_reduced_parts_count_whole",
    ),
    Fault(
        "what each device computes for itself counts for one device",
        "fftlm_jax/plan/arithmetic.py",
        "return math.prod(mesh.shape[axis] for axis in (mesh.axis_names if manual is None else manual))",
        "return 1",
        "tests/plan/test_arithmetic.py::test_what_each_device_does_for_itself_counts_for_all",
    ),
    # Evaluation and export.
    Fault(
        "the longest copy is found too short",
        "fftlm_jax/evaluation/generated_text.py",
        "while limit - known > 1:",
        "while limit - known > 2:",
        "tests/evaluation/test_text_statistics.py::test_copies_are_those_of_a_search_of_every_substring",
    ),
    Fault(
        "copies across the borders of blocks are missed",
        "fftlm_jax/evaluation/generated_text.py",
        "start + _BLOCK + SHORTEST_COPY - 1]",
        "start + _BLOCK]",
        "tests/evaluation/test_text_statistics.py::test_copies_are_those_of_a_search_of_every_substring",
    ),
    Fault(
        "what context is worth is measured from the shortest",
        "fftlm_jax/evaluation/context.py",
        "zip(lengths, bits_CM, bits_CM - bits_CM[-1])",
        "zip(lengths, bits_CM, bits_CM - bits_CM[0])",
        "tests/evaluation/test_context.py::test_the_error_is_that_of_the_difference",
    ),
    Fault(
        "exported weights lose half of their bits",
        "fftlm_jax/export/exported_model.py",
        "{name: np.asarray(leaf) for name, leaf",
        "{name: np.asarray(np.float16(leaf), leaf.dtype) for name, leaf",
        "tests/test_export.py::test_weights_come_back_bit_for_bit",
    ),
    Fault(
        "an export is not compared with its config",
        "fftlm_jax/export/exported_model.py",
        "faults = misfits(tensors, tensors_of(build(config.model)[1]))",
        "faults = []",
        "tests/test_export.py::test_only_the_arrays_of_the_config_are_taken",
    ),
    # Configs, what others wrote, and how a command ends.
    Fault(
        "a range has no upper end",
        "fftlm_jax/config/limits.py",
        "None if low <= v <= high else",
        "None if low <= v else",
        "tests/test_config.py::test_faults",
    ),
    Fault(
        "unknown keys are accepted",
        "fftlm_jax/config/reading.py",
        "unknown = [name for name in given if name not in known]",
        "unknown = []",
        "tests/test_config.py::test_unknown_and_missing_keys_are_named",
    ),
    Fault(
        "control characters reach the terminal",
        "fftlm_jax/runtime/untrusted.py",
        'c if c.isprintable() or c == "\\n" else',
        "c if c.isprintable() or c.isascii() else",
        "tests/faults/test_hostile_text.py::test_every_character_that_could_do_harm",
    ),
    Fault(
        "a manifest may name files outside of its step",
        "fftlm_jax/runtime/untrusted.py",
        'not name.startswith("/") and ".." not in name.split("/")',
        'not name.startswith("/")',
        "tests/faults/test_hostile_checkpoints.py::test_a_manifest_names_no_file_elsewhere",
    ),
    Fault(
        "a link may lead out of a run directory",
        "fftlm_jax/runtime/untrusted.py",
        "not Path(os.path.realpath(path)).is_relative_to(root)",
        "not path.is_relative_to(root)",
        "tests/faults/test_hostile_checkpoints.py::test_no_link_leads_out_of_a_run_directory",
    ),
    Fault(
        "the doctor warns of descent that is fast enough",
        "fftlm_jax/doctor/rules_loss.py",
        "and fall < _LEAST_FALL:",
        "and fall > _LEAST_FALL:",
        "tests/training/test_diagnostics.py::test_a_healthy_run_hears_no_warning",
    ),
    Fault(
        "a damaged program of the compile cache is loaded",
        "fftlm_jax/runtime/compile_cache.py",
        'note.is_file() and note.read_text(errors="replace") == file_sha256(entry)',
        "note.is_file()",
        "tests/faults/test_compile_cache.py::test_damaged_entries_are_compiled_again_to_the_same_results",
    ),
    Fault(
        "every error of a command ends with exit code 1",
        "fftlm_jax/runtime/process.py",
        "return error.exit_code",
        "return 1",
        "tests/test_evaluate.py::test_a_corpus_that_changed_is_not_called_held_out",
    ),
    # What came with one training core, the schema and the picture of long runs.
    Fault(
        "a saved cutoff below the coefficients in use is gone on from",
        "fftlm_jax/training/run_parts.py",
        "    return cutoff_passing(used, freq_bins(config.model.seq_len), config.model.kernel_len)",
        "    return 1",
        "tests/training/test_run.py::test_a_saved_cutoff_below_the_coefficients_in_use_is_refused",
    ),
    Fault(
        "micro-batches of fine-tuning count alike, however many bytes of them count",
        "fftlm_jax/raft/fine_tuning.py",
        "jnp.sum(rows.weight_NW[..., 1:]) / micro_batches",
        "jnp.sum(rows.weight_NW[0, ..., 1:])",
        "tests/raft/test_fit.py::test_micro_batches_are_one_large_batch",
    ),
    Fault(
        "fine-tuning returns the last weights where it keeps an average",
        "fftlm_jax/raft/fine_tuning.py",
        "averaged_params(step.ema_decay, state.ema) if has_average else state.params",
        "state.params",
        "tests/raft/test_fit.py::test_an_average_is_that_of_the_weights_after_every_step",
    ),
    Fault(
        "the picture of a long run loses its spikes",
        "fftlm_jax/recording/curves.py",
        "starts + rows.argmax(axis=1)",
        "starts",
        "tests/training/test_metrics.py::test_a_thinned_line_keeps_its_extremes_and_its_order",
    ),
    Fault(
        "a key of the schema has another default than the list for people",
        "fftlm_jax/config/keys_model.py",
        'key(1024, "Bytes of a training window (T)."',
        'key(512, "Bytes of a training window (T)."',
        "tests/test_config.py::test_the_list_for_people_has_every_key_with_the_schemas_default_and_sentence",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(arguments)
    chosen = [fault for fault in _with_tests(args.tests) if args.only in fault.name]
    if args.list:
        for fault in chosen:
            print(f"{fault.name}\n    {fault.file}  ->  {fault.caught_by}")
        return 0
    if not chosen:
        sys.exit(f"--only: no fault has {args.only!r} in its name; --list shows them all.")
    _require_snippets(args.root, chosen)
    try:
        with tempfile.TemporaryDirectory(prefix="fftlm_jax_mutations_", ignore_cleanup_errors=True) as scratch:
            if not args.no_control and not _passes_unchanged(args.root, Path(scratch), chosen):
                return 1
            return _plant_all(args.root, Path(scratch), chosen)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running or lying about", flush=True)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to copy; this one by default")
    parser.add_argument("--tests", type=Path, help="JSON object of names of faults and the tests that catch them there")
    parser.add_argument("--no-control", action="store_true", help="skip the run of the tests without any fault")
    parser.add_argument("--list", action="store_true", help="print the table and do nothing")
    return parser


def _with_tests(file: Path | None) -> tuple[Fault, ...]:
    """The table, with the tests that a file names in place of its own."""
    tests: Mapping[str, str] = json.loads(file.read_text()) if file else {}
    unknown = sorted(set(tests) - {fault.name for fault in FAULTS})
    if unknown:
        sys.exit(f"--tests: {file} names {unknown[0]!r}, which is no fault of the table; --list shows them all.")
    return tuple(fault._replace(caught_by=tests.get(fault.name, fault.caught_by)) for fault in FAULTS)


def _require_snippets(root: Path, faults: Sequence[Fault]) -> None:
    """Refuses a checkout in which some fault has no one place to be planted."""
    wrong = []
    for fault in faults:
        file = root / fault.file
        count = file.read_text().count(fault.old) if file.is_file() else 0
        if count != 1:
            wrong.append(f"{fault.name}: {fault.file} holds {fault.old!r} {count} times, where it must be once.")
    if wrong:
        sys.exit("\n".join(wrong))


def _passes_unchanged(root: Path, scratch: Path, faults: Sequence[Fault]) -> bool:
    """Whether the tests pass where nothing is planted: what fails anyway catches nothing."""
    tests = list(dict.fromkeys(fault.caught_by for fault in faults))
    begun = time.monotonic()
    code, output = _run_tests(root, scratch, tests, LIMIT * len(tests))
    print(f"control: {len(tests)} tests without any fault, {time.monotonic() - begun:.0f} s", flush=True)
    if code != 0:
        print(f"{output}\nThe tests must pass before anything is planted; pytest ended with {code}.", flush=True)
    return code == 0


def _plant_all(root: Path, scratch: Path, faults: Sequence[Fault]) -> int:
    begun, caught = time.monotonic(), 0
    for number, fault in enumerate(faults, start=1):
        planted = time.monotonic()
        code, output = _run_tests(root, scratch, [fault.caught_by], LIMIT, fault)
        verdict, why = _verdict(code, output)
        caught += verdict == "caught"
        seconds = time.monotonic() - planted
        print(f"{number:>3} {verdict:<10} {seconds:>4.0f} s  {fault.name}\n      {fault.caught_by}{why}", flush=True)
    print(f"{caught} of {len(faults)} caught, {time.monotonic() - begun:.0f} s")
    return 0 if caught == len(faults) else 1


def _verdict(code: int | None, output: str) -> tuple[str, str]:
    """What became of a fault, and what pytest says of it on lines of its own."""
    if code == 0:
        return "NOT CAUGHT", ""
    failed = re.search(r"^FAILED .*? - (.*)$", output, re.MULTILINE)
    # Exit code 1 also stands for a fixture that could not be set up, and others for tests that are not there.
    if code == 1 and failed:
        return "caught", f"\n      {failed.group(1)[:120]}"
    return "ERROR", f"\n{output}\n      No test failed: pytest ended with {code}."


def _run_tests(
    root: Path, scratch: Path, tests: Sequence[str], limit: float, fault: Fault | None = None
) -> tuple[int | None, str]:
    """Exit code of pytest in a copy with a fault or none (None where time ran out), and what it printed."""
    with _copy_of(root, scratch) as copy:
        if fault is not None:
            file = copy / fault.file
            file.write_text(file.read_text().replace(fault.old, fault.new))
        return _pytest(copy, scratch, tests, limit)


@contextmanager
def _copy_of(root: Path, scratch: Path) -> Iterator[Path]:
    """A copy of a checkout, removed afterwards together with all temporary files."""
    copy, temporary = scratch / "copy", scratch / "tmp"
    try:
        temporary.mkdir()
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _pytest(copy: Path, scratch: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Runs pytest in a copy; none of its processes is left when this returns."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),  # Before the installed package, here and in processes that tests start.
        "TMPDIR": str(scratch / "tmp"),
        "XDG_CACHE_HOME": str(scratch / "cache"),  # Compiled programs are shared by the runs from here, and no others.
        "COLUMNS": "240",  # That pytest cuts no reason short.
    }
    with subprocess.Popen(
        [*command, *tests],
        cwd=copy,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return None, f"It took longer than {limit:.0f} seconds."
        finally:
            _end_all(process)
        return process.returncode, output


def _end_all(process: subprocess.Popen) -> None:
    """Ends a process and those that it started, which are in a session of their own."""
    with suppress(ProcessLookupError):  # All have ended by themselves.
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
