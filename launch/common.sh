# shellcheck shell=bash
# What the scripts of this folder share. Sourced, never run.

die() {
  echo "error: $*" >&2
  exit 2
}

# `wait -n -p` and `${word@Q}` are not older.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) ||
  die "bash $BASH_VERSION is too old; 5.1 is needed"

# usage_of FILE: the comment at its head, which is its manual.
usage_of() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# need NAME...: every one of these variables has to be set; names all that are not.
need() {
  local name
  local missing=()
  for name in "$@"; do
    [[ -n ${!name:-} ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || die "${0##*/} needs ${missing[*]}; see the head of the file"
}

# positive NAME...: every one of these variables has to be a whole number from 1.
positive() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name is '${!name}'; it must be 1 or more"
  done
}

# kubernetes_name: NAME has to be one that Kubernetes takes, with more behind it.
kubernetes_name() {
  # shellcheck disable=SC2153  # `need` has seen to NAME
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "NAME is '$NAME'; it must be lower-case letters, digits and -, at most 40"
}

dry() { [[ ${DRY_RUN:-0} == 1 ]]; }

# show COMMAND...: prints it, quoted where a shell needs it.
show() {
  local word
  local line=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      line+=("$word")
    else
      line+=("${word@Q}")
    fi
  done
  echo "${line[*]}"
}

# run COMMAND...: runs it, or prints it under DRY_RUN=1.
run() { if dry; then show "$@"; else "$@"; fi; }

# become COMMAND...: the same, in place of this shell, so that signals reach it.
become() {
  if dry; then
    show "$@"
    exit 0
  fi
  exec "$@"
}

# filled FILE "NAME..." ARGS...: the file with the values of these variables, and ARGS as
# a list, where they stand in braces after a dollar sign.
filled() {
  local field list text
  text=$(<"$1")
  for field in $2; do
    text=${text//"\${$field}"/"${!field}"}
  done
  # Last, so that nothing is filled into them; a JSON list is a YAML list.
  list=$("$PYTHON" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${@:3}")
  echo "${text//"\${ARGS}"/"$list"}"
}

# Paths on the command line are relative to the checkout: `python -m` needs it.
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
# COMPILATION_CACHE: a folder or bucket that all processes see, for compiled programs.
OPTIONS=()
[[ -z ${COMPILATION_CACHE:-} ]] || OPTIONS+=(--compilation_cache="$COMPILATION_CACHE")
# shellcheck disable=SC2034  # the scripts use it
MAIN=("$PYTHON" -m reid_jax.main "${OPTIONS[@]}")
