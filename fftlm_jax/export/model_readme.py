"""The README of an exported model: what it is, and examples that run in its folder as they stand."""

import fftlm_jax
from fftlm_jax.config.traits import MIXERS
from fftlm_jax.export.exported_model import PLATFORMS, PROGRAM, WEIGHTS, ExportedConfig

_MODEL = """\
# A byte-level language model

{weights} of training step {step}, exported by fftlm_jax {version}: {parameters:,} parameters, {layers} layers of causal
{mixer}, width {width}, trained on windows of {window} bytes. It reads bytes and predicts the one after each.{chunk}

In this folder, with fftlm_jax and its extra `export` installed:

```python
import numpy as np
from fftlm_jax.export import load_exported, next_byte_logits
from fftlm_jax.generation import SamplingConfig, decoder_for
from fftlm_jax.model import build

config, params = load_exported(".")
{text}
logits = next_byte_logits(config, params, np.frombuffer(text, np.uint8)[None])  # float32 [1, len(text), 256]
print("next byte:", bytes([int(logits[0, -1].argmax())]))

decoder = decoder_for(config.model, build(config.model)[0], config.low_pass)
print(decoder.generate(params, [b"def main("], 100, SamplingConfig(temperature=0.8, top_p=0.95))[0])
```

Weights and config are data: nothing is executed on loading. A model can repeat what it was trained on.
"""

_PROGRAM = """
`{program}` is the same forward pass as a program of its own, for {platforms}: it needs jax, flatbuffers and
safetensors, but not fftlm_jax. It takes any number of windows of {window} bytes.
{shorter}.
A program is code: run it only if you trust where it came from.

```python
from pathlib import Path

import numpy as np
from jax import export
from safetensors.numpy import load_file

forward = export.deserialize(bytearray(Path("{program}").read_bytes()))
{text}
window = np.frombuffer(text.ljust({window}, b"\\0"), np.uint8)
logits = forward.call(load_file("{tensors}"), window[None])  # float32 [1, {window}, 256]
print("next byte:", bytes([int(logits[0, len(text) - 1].argmax())]))
```
"""


def readme(config: ExportedConfig, parameters: int, with_program: bool) -> str:
    """The text that goes with a model of so many parameters."""
    model = config.model
    text, shorter = 'text = b"def main("', "Fill up the end of a shorter text; no position sees what follows it"
    if config.low_pass.method == "signal" and not config.low_pass.is_full:
        text = f'text = b"def main(".rjust({model.seq_len}, b"\\n")  # The filter takes whole windows and sees ahead,'
        text += "\n# so that only the last position counts."
        shorter = "Fill up the beginning of a shorter text, since only the last position counts"
    template = _MODEL + _PROGRAM if with_program else _MODEL
    return template.format(
        weights={"raw": "Weights", "average": "The running average of the weights"}[config.weights],
        step=config.step,
        version=fftlm_jax.__version__,
        parameters=parameters,
        layers=model.n_layers,
        mixer=MIXERS[model.mixer].words,
        width=model.d_model,
        window=model.seq_len,
        chunk=f"\nIts head also has slices for the {model.chunk - 1} bytes after that." if model.chunk > 1 else "",
        text=text,
        shorter=shorter,
        program=PROGRAM,
        platforms=", ".join(PLATFORMS),
        tensors=WEIGHTS,
    )
