#!/usr/bin/env bash
# Everything that waits for an accelerator, in at most nine minutes, into one folder and one JSON file:
#
#     bash experiments/accelerator.sh OUT [TEXT]      TEXT is TinyShakespeare; without it that part is left out
#     TINY=1 bash experiments/accelerator.sh OUT      anywhere: tries the script itself with tiny models
#
# Each part has its own time limit and writes what it has; a part that fails is named in the JSON, and the others go on.
set -u
out=${1:?name a folder for the results}
text=${2:-}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here" || exit 1
tiny=${TINY:+--tiny}

part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    local start=$SECONDS
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    printf '{"part": "%s", "exit": %d, "seconds": %d}\n' "$name" $? $((SECONDS - start)) | tee -a "$out/parts.jsonl"
}

: >"$out/parts.jsonl"
part planned 200 python -m experiments.planned_and_measured $tiny --out="$out/planned.json"
if [ -z "${TINY:-}" ]; then
    part bench 140 python -m experiments.bench conv step decode --rounds=9 --json="$out/bench.json"
    model="--config.model.d_model=384 --config.model.n_layers=10 --config.model.dtype=bfloat16"
    steps="--config.train.batch_size=64 --config.train.steps_per_epoch=500 --config.eval.every=250"
    [ -n "$text" ] && part shakespeare 190 python main.py --config=configs/shakespeare_cpu.py --workdir="$out/shakespeare" \
        --overwrite --config.data.path="$text" --config.checkpoint.every=100000 $model $steps
    part raft 60 python main.py --config=configs/raft.py --workdir="$out/raft" --overwrite --config.raft.cycles=2
else
    quick="--config.train.steps_per_epoch=4 --config.train.epochs=1 --config.eval.every=4 --config.sample.bytes=8"
    part shakespeare 200 python main.py --config=configs/shakespeare_cpu.py --workdir="$out/shakespeare" --overwrite \
        --config.data.source=python_stdlib --config.model.n_layers=1 --config.eval.max_bytes=4096 $quick
fi
python - "$out" <<'PYTHON'
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
result = {"parts": [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]}
for name in ("planned", "bench"):
    if (out / f"{name}.json").exists():
        result[name] = json.loads((out / f"{name}.json").read_text())
for name in ("shakespeare", "raft"):
    metrics = out / name / "metrics.jsonl"
    if metrics.exists():
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        result[name] = [record for record in records if record.get("kind") in ("eval", "cycle")]
for part in result["parts"]:
    if part["exit"]:
        part["last_words"] = (out / f"{part['part']}.log").read_text(errors="replace").splitlines()[-3:]
(out / "accelerator.json").write_text(json.dumps(result, indent=1) + "\n")
print(out / "accelerator.json")
PYTHON
