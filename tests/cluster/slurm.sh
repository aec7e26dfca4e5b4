# SPDX-License-Identifier: Apache-2.0
# Sourced: a Slurm of this machine alone, controller and nodes, everything below one folder; no systemd, no cgroups, no accounting.
#   slurm_up FOLDER NODES      starts it and waits until every node is idle; exports SLURM_CONF. 1: it doesn't start
#   slurm_down FOLDER          ends what slurm_up started
# Two pretend GPUs a node. A job that is queued again waits cred_expire + 1 s (120 s unless said). Needs root, slurm-wlm and munge.

slurm_missing() { # the reason why there can be none here, or nothing
    [ "$(id -u)" = 0 ] || { echo "a Slurm of one's own needs root"; return; }
    for program in munged slurmctld slurmd sbatch srun scontrol; do
        command -v "$program" >/dev/null || { echo "$program is not installed (packages slurm-wlm and munge)"; return; }
    done
}

slurm_conf() { # FOLDER NODES PORT
    host=$(hostname -s)
    cat <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge.socket,cred_expire=10
CredType=cred/munge
SlurmctldPort=$3
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool.%n
TmpFS=$1/tmp.%n
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.%n.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=pmix
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MailProg=/bin/true
GresTypes=gpu
END
    for i in $(seq "$2"); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$(($3 + i)) CPUs=4 Gres=gpu:2 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
}

slurm_up() {
    mkdir -p "$1/state"
    chmod 755 "$1"
    head -c 128 /dev/urandom >"$1/munge.key"
    chmod 400 "$1/munge.key"
    munged --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \
        --log-file="$1/munged.log" --seed-file="$1/munge.seed" || return 1
    slurm_conf "$1" "$2" "${SLURM_PORT:-$((20000 + $$ % 10000))}" >"$1/slurm.conf"
    mknod "$1/nvidia0" c 1 3 && mknod "$1/nvidia1" c 1 3 || return 1 # null devices
    echo "Name=gpu Flags=nvidia_gpu_env File=$1/nvidia[0-1]" >"$1/gres.conf"
    export SLURM_CONF="$1/slurm.conf"
    slurmctld -c -f "$SLURM_CONF" || return 1
    for i in $(seq "$2"); do
        mkdir -p "$1/spool.n$i" "$1/tmp.n$i"
        slurmd -N "n$i" -c -f "$SLURM_CONF" || return 1
    done
    for i in $(seq 100); do
        [ "$(sinfo -h -N -o %t 2>/dev/null | grep -cx idle)" = "$2" ] && return 0
        sleep 0.1
    done
    tail -n 5 "$1"/*.log
    return 1
}

slurm_down() {
    for file in "$1"/slurmd.n*.pid "$1/slurmctld.pid" "$1/munged.pid"; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || continue
        for i in $(seq 30); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || :
    done
}
