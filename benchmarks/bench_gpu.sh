#!/usr/bin/env bash
# The CUDA tests, then rerankers and the benchmark, in less than nine minutes, on a machine with a GPU, torch 2.11 or newer and no
# package index. Wheels in .whl (`make bench-gpu-wheels`) are put before what is installed. Results go to $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} out=${OUT:-benchmarks/results} site=$(mktemp -d)
mkdir -p "$out"
if compgen -G '.whl/*.whl' >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
fi
export PYTHONPATH=$site:$PWD/embedders:$PWD/integrations:$PWD/tests PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "torch of '$python' sees no GPU here: run this on a machine that has one (benchmarks/NOTES.md)" >&2; exit 1; }
# the project's settings name plugins that may be missing there
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.cuda' tests)
timeout 100 "$python" -m pytest -c /dev/null --rootdir "$PWD" -p no:cacheprovider -q -rfEs -m cuda "${files[@]}" 2>&1 |
  tee "$out/cuda-tests.txt" || echo "CUDA tests: exit status $?"
timeout 80 "$python" benchmarks/rerank.py --device cuda --precision bfloat16 --output "$out/rerank-cuda.json" ||
  echo "rerankers: exit status $?"
minutes=$("$python" -c "print((515 - $SECONDS) / 60)")
exec "$python" benchmarks/throughput.py --device cuda --minutes "$minutes" --output "$out" "$@"
