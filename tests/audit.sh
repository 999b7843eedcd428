#!/usr/bin/env bash
# Checks the dependencies by deny.toml: licences, bans, sources; advisories where their database can be had. Installs
# cargo-deny where it is missing, which takes some minutes once.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'audit: %s\n' "$*"; }

if ! cargo deny --version >/dev/null 2>&1; then
  say "installing cargo-deny"
  cargo install --locked --quiet cargo-deny --version '^0.20' </dev/null
fi
cargo deny --locked check licenses bans sources
if cargo deny fetch db >/dev/null 2>&1 </dev/null; then
  cargo deny --locked check advisories
else
  say "the database of advisories cannot be reached: NOT CHECKED"
fi
