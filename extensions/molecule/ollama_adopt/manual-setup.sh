#!/bin/sh
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Sets up Ollama as an administrator does manually: manual-setup.sh KIND ARCHIVE. KIND nothing removes it again.
set -e
systemctl disable --quiet --now ollama 2>/dev/null || :
rm -rf /etc/systemd/system/ollama.service* /usr/local/bin/ollama /usr/local/lib/ollama /opt/ollama /etc/ollama.env
if [ "$1" = nothing ]; then
  systemctl daemon-reload
  ! id -u ollama >/dev/null 2>&1 || userdel ollama
  rm -rf /usr/share/ollama /srv/models /root/ollama.tar.zst
  exit
fi
prefix=/usr/local
[ "$1" != own-unit ] || prefix=/opt/ollama
mkdir -p $prefix
tar --zstd -xC $prefix -f "$2"
id -u ollama >/dev/null 2>&1 || useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama
for group in render video; do ! getent group $group >/dev/null || usermod -a -G $group ollama; done
unit=/etc/systemd/system/ollama.service
{
  echo '[Unit]'
  echo 'Description=Ollama Service'
  echo 'After=network-online.target'
  echo
  echo '[Service]'
  echo "ExecStart=$prefix/bin/ollama serve"
  echo 'User=ollama'
  echo 'Group=ollama'
  echo 'Restart=always'
  echo 'RestartSec=3'
  echo 'Environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'
  if [ "$1" = edited-unit ]; then # as common how-tos recommend
    echo 'Environment="CUDA_VISIBLE_DEVICES=0,1,2,3"'
    echo 'Environment="OLLAMA_SCHED_SPREAD=1"'
    echo 'Environment="OLLAMA_KEEP_ALIVE=-1"'
  fi
  echo
  echo '[Install]'
  echo 'WantedBy=default.target'
} >$unit
mkdir -p $unit.d
case $1 in
  override-conf)
    cat >$unit.d/override.conf <<END
[Service]
Environment="CUDA_VISIBLE_DEVICES=1,0" OLLAMA_KEEP_ALIVE=24h
Environment="OLLAMA_FLASH_ATTENTION=true"
Environment="OLLAMA_NUM_PARALLEL=4" LLAMA_ARG_THREADS=8
END
    ;;
  own-unit)
    install -d -o ollama -g ollama /srv/models
    printf '%s\n' '# of the team' OLLAMA_HOST=127.0.0.1:11500 OLLAMA_MODELS=/srv/models HF_TOKEN=hf_not-to-be-seen >/etc/ollama.env
    chmod 600 /etc/ollama.env
    printf '%s\n' '[Service]' 'EnvironmentFile=/etc/ollama.env' >$unit.d/10-environment.conf
    printf '%s\n' '[Service]' 'Environment=OLLAMA_MAX_LOADED_MODELS=2' 'LimitNOFILE=65536' >$unit.d/50-limits.conf
    ;;
esac
systemctl daemon-reload
[ "$1" = own-unit ] || systemctl enable --quiet ollama
systemctl restart ollama
port=11434
[ "$1" != own-unit ] || port=11500
timeout 60 sh -c "until curl -sf -o /dev/null --max-time 2 http://127.0.0.1:$port/api/version; do sleep 0.1; done"
