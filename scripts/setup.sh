#!/usr/bin/env bash
# Installs what hadal needs on Debian 12; safe to run again.
#   scripts/setup.sh          what `make quickstart` and `make test` need
#   scripts/setup.sh --full   what CI and the maintainers' targets need as well
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

packages=(build-essential cmake ninja-build pkg-config git ca-certificates
  nlohmann-json3-dev libfmt-dev libcli11-dev libpcre2-dev libzstd-dev libboost-dev libgtest-dev
  bible-kjv bible-kjv-text python3)
full_packages=(python3-venv libsimgrid-dev chromium clang-19 libclang-rt-19-dev llvm-19)

full=no
for argument in "$@"; do
  case "$argument" in
    --full) packages+=("${full_packages[@]}"); full=yes ;;
    *) echo "setup.sh: unknown argument $argument; use --full or nothing" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all packages are installed"
else
  sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup.sh: run it as root, or install sudo; needed: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${sudo[@]}" apt-get update -qq || { echo "setup.sh: apt-get update failed; check the network and /etc/apt" >&2; exit 1; }
  "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    { echo "setup.sh: could not install ${missing[*]}; this script is for Debian 12" >&2; exit 1; }
fi

# Libraries that Debian does not have: their sources go under build/sources, and the build compiles
# what it finds there.
pins=scripts/sources.txt sources=build/sources
cd "$(dirname "$0")/.."
if [ "$full" = yes ] && ! cmp -s "$pins" "$sources/sources.txt"; then
  echo "setup: fetching the sources of $pins"
  rm -rf "$sources"
  mkdir -p "$sources"
  # pip asks the package for its metadata, with build tools that it keeps to itself.
  { python3 -m venv "$sources/venv" &&
    "$sources/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes \
      --no-binary xgrammar --requirement "$pins" --dest "$sources"; } ||
    { echo "setup.sh: could not fetch the sources of $pins; check the network and try again" >&2; exit 1; }
  mkdir "$sources/xgrammar"
  tar -xzf "$sources"/xgrammar-*.tar.gz --strip-components 1 -C "$sources/xgrammar"
  rm -r "$sources/venv" "$sources"/xgrammar-*.tar.gz
  cp "$pins" "$sources/sources.txt"  # last, so that a broken folder is made again
fi
echo "setup: done"
