#!/usr/bin/env bash
# Runs every fuzz target for a while, from its texts in fuzz/seeds: FUZZ_SECONDS each, 20 unless it is set. What is found lies in fuzz/artifacts and
# becomes a text in src/fuzzing.rs. Installs cargo-fuzz where it is missing. The fuzzer needs the nightly compiler; without it
# `cargo test fuzzing` drives the same entries with random texts.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-20}
say() { printf 'fuzz: %s\n' "$*"; }

if ! cargo fuzz --version >/dev/null 2>&1; then
  say "installing cargo-fuzz"
  cargo install --locked --quiet cargo-fuzz </dev/null
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
  say "the nightly compiler is missing: rustup toolchain install nightly --profile minimal" >&2
  exit 1
fi
for source in fuzz/fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  say "$target for $seconds s"
  # What is found of interest goes into the first; the second is where the search begins.
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=2048 -print_final_stats=1 </dev/null
done
say "nothing was found"
