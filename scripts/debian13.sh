#!/usr/bin/env bash
# debian13.sh FOLDER [TARGET...]: as root, makes a Debian 13 below FOLDER with debootstrap, installs there what README.md names,
# clones the committed project into it and runs `make TARGET` for each target (demo and test where none is named).
# DEBIAN_MIRROR names the archive to take Debian from; debootstrap's own default otherwise. Environment variables of pip and uv,
# proxies and the certificates in /etc/ssl/certs/ca-certificates.crt hold there too. A root that is there already is used again; remove FOLDER for a new one.
set -euo pipefail
unset CDPATH

[ $# -gt 0 ] || { echo "usage: debian13.sh FOLDER [TARGET...]" >&2; exit 2; }
folder=$(realpath -m "$1")
this=$(realpath "${BASH_SOURCE[0]}")
shift
cd "$(dirname "$this")/.."
[ $# -gt 0 ] || set -- demo test

if [ "$(id -u)" != 0 ]; then
  echo "error: debootstrap and chroot need root. Run \`make debian13\` as root." >&2
  exit 1
fi
if ! command -v debootstrap >/dev/null; then
  printf 'error: debootstrap is not installed. Install it, then try again:\n  apt-get install debootstrap\n' >&2
  exit 1
fi
# The mounts below belong to this process and its children, and end with them.
if [ -z "${ONERANK_UNSHARED:-}" ]; then
  ONERANK_UNSHARED=1 exec unshare --mount --propagation private "$this" "$folder" "$@"
fi

mkdir -p "$folder"
root=$folder/root
if [ ! -e "$folder/complete" ]; then
  echo "== Debian 13 in $root"
  rm -rf "$root"
  debootstrap --variant=minbase trixie "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
  touch "$folder/complete"
fi

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
# This machine's names and certificates; the package ca-certificates writes its own over them.
use_network_of_host() {
  local file
  mkdir -p "$root/etc/ssl/certs"
  for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || cp "$file" "$root$file"
  done
}
use_network_of_host

# inside COMMAND...: runs it in the root with a clean environment, but for settings of the network, pip and uv.
inside() {
  local kept=()
  while IFS= read -r variable; do kept+=("$variable=${!variable}"); done < <(
    compgen -e | grep -E '^(PIP_|UV_|SSL_CERT_|REQUESTS_CA_|CI$)|_proxy$|_PROXY$' || true
  )
  chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "${kept[@]}" "$@"
}

packages=$(sed -n 's/^apt-get install \(.*python3-venv.*\)/\1/p' README.md | sed 's/ *#.*//' | head -n 1)
[ -n "$packages" ] || { echo "error: README.md: a line \`apt-get install ... python3-venv ...\` is expected. Received: none." >&2; exit 1; }
echo "== apt-get install $packages"
inside apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
inside apt-get install -y -qq --no-install-recommends $packages >"$folder/apt.log" 2>&1 || { tail -n 20 "$folder/apt.log" >&2; exit 1; }
use_network_of_host

rm -rf "$root/onerank"
git clone --quiet --no-hardlinks . "$root/onerank"
for target in "$@"; do
  echo "== make $target"
  start=$SECONDS
  inside make -C /onerank "$target"
  echo "== make $target: $((SECONDS - start)) s"
done
