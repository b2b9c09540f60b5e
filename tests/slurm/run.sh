#!/usr/bin/env bash
# Tests training and sweeps under a Slurm that it installs, starts and stops: `make test-slurm`. Its two nodes are this machine.
# Run it as root on Debian or Ubuntu, preferably in a container. The packages stay installed; nothing stays running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python}
packages=(slurmctld slurmd slurm-client munge)

skip() { echo "skipped: $1"; exit 0; }
fail() { echo "FAILED: $1" >&2; tail -n 20 "$state"/*.log >&2; exit 1; }
wait_for() {  # SECONDS WHAT COMMAND...
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        ((SECONDS < until)) || fail "timeout while waiting for $what"
        sleep 1
    done
}

((EUID == 0)) || skip 'test-slurm installs and starts Slurm: run it as root, in a container'
command -v apt-get > /dev/null || skip "test-slurm installs Debian's Slurm: apt-get not found"
pidof slurmctld slurmd > /dev/null && skip 'Slurm is already running on this machine'
if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}"; } > /tmp/slurm_install.log 2>&1 ||
        { tail -n 5 /tmp/slurm_install.log; skip 'apt-get cannot install Slurm: see above'; }
fi

# -------------------------------------------------------------------------- a Slurm of two nodes, both of them this machine
state=$(mktemp -d /tmp/pvt_mm_slurm.XXXXXX)
export SLURM_CONF=$state/slurm.conf PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
pids=()
stop() {
    if ((${#pids[@]})); then
        scancel --user=root 2> /dev/null || true
        for _ in {1..30}; do [[ $(squeue --noheader 2> /dev/null) ]] || break; sleep 1; done  # jobs are killed after KillWait
        kill "${pids[@]}" 2> /dev/null || true
        wait "${pids[@]}" 2> /dev/null || true
    fi
    if [[ ${1:-1} == 0 ]]; then rm -rf "$state"; else echo "logs and results are in $state"; fi
}
trap 'stop $?' EXIT
trap 'exit 130' INT TERM

host=$(hostname -s)
nodes=("$host" localhost)  # names that resolve
mkdir "$state/controller"
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/%n.log
SlurmdParameters=config_overrides
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=2 State=UNKNOWN
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=${nodes[0]} Default=YES MaxTime=INFINITE State=UP
PartitionName=both Nodes=${nodes[0]},${nodes[1]} MaxTime=INFINITE State=UP
CONF
if ! munge --no-input > /dev/null 2>&1; then
    install -d -o munge -g munge /run/munge
    runuser -u munge -- munged --foreground > "$state/munged.log" 2>&1 &
    pids+=($!)
fi
wait_for 20 munge munge --no-input
slurmctld -D > "$state/slurmctld.out" 2>&1 &
pids+=($!)
for node in "${nodes[@]}"; do
    mkdir "$state/$node"
    slurmd -D -N "$node" > "$state/$node.out" 2>&1 &
    pids+=($!)
done
wait_for 60 'the nodes' bash -c '[[ $(sinfo --noheader --format="%T %D") == "idle 2" ]]'
echo "Slurm $(sinfo --version) is running: $(sinfo --noheader)"

# ------------------------------------------------------------------ two trainings on two nodes at a time, one of them requeued
"$python" tools/make_shapes.py "$state/shapes" --train 120 --val 24 > "$state/shapes.log" 2>&1
small=(train_cfg.max_epochs=1 train_cfg.val_interval=1 param_scheduler.1.end=1 default_hooks.logger.interval=5 "data_root=$state/shapes")
export GPUS=2 GPUS_PER_NODE=1 CPUS_PER_TASK=1 PYTHON=$python
SRUN_ARGS="--gres=none --output=$state/requeued.log" tools/slurm_train.sh --requeue both requeued \
    configs/demo/retinanet_shapes.py "$state/requeued" --cfg-options "${small[@]}" train_cfg.max_epochs=3 > "$state/requeued.id"
requeued=$(sed 's/.* //' "$state/requeued.id")
SRUN_ARGS=--gres=none timeout 600 tools/slurm_train.sh both two \
    configs/demo/retinanet_shapes.py "$state/two" --cfg-options "${small[@]}" > "$state/two.log" 2>&1 || fail 'slurm_train.sh'
grep -q 'Epoch(train)  *\[1\]\[15/15\]' "$state/two.log" || fail '120 images in 2 processes with batches of 4 are not 15 steps'
[[ -f $state/two/epoch_1.pth ]] || fail 'slurm_train.sh wrote no checkpoint'
echo 'slurm_train.sh: two processes on two nodes trained one model, next to another job there'

wait_for 300 'a checkpoint' test -f "$state/requeued/last_checkpoint"
scancel --signal=USR2 "$requeued"  # what --signal does before a time limit
wait_for 60 'the job in the queue' bash -c "[[ \$(squeue --noheader --format=%T --jobs=$requeued) == PENDING ]]"
ls "$state/requeued"/iter_*.pth > /dev/null || fail 'the signal did not save a checkpoint'
wait_for 600 'the end of the requeued job' test -f "$state/requeued/epoch_3.pth"
grep -q 'resumed epoch' "$state/requeued.log" || fail 'the requeued job did not resume'
echo 'slurm_train.sh --requeue: stopped by a signal, queued again, resumed'
unset GPUS GPUS_PER_NODE CPUS_PER_TASK PYTHON

# ------------------------------------------------------------------------------------------- a sweep of trials on two nodes
cat > "$state/nodes.py" <<SWEEP
metric = 'coco/bbox_mAP'
configs = dict(shapes='$PWD/configs/demo/retinanet_shapes.py')
SWEEP
"$python" tools/sweep.py "$state/nodes.py" --work-dir "$state/nodes" --executor slurm --partition both --nodes 2 --gpus 0 \
    --time 60 --slurm cpus-per-task=1 --cfg-options "${small[@]}" > "$state/nodes.log" 2>&1 ||
    { cat "$state/nodes.log"; fail 'the sweep on two nodes'; }
grep -q 'Epoch(train)  *\[1\]\[15/15\]' "$state"/nodes/shapes-seed0/train.log || fail 'the trial does not have two processes'
[[ -s $state/nodes/shapes-seed0/train_1.log ]] || fail 'the second task wrote no log'
echo 'sweep.py --nodes: two tasks trained one model'

# --------------------------------------------------------- the demo's sweep, with one preempted and one requeued trial
sweep=("$python" tools/sweep.py configs/sweeps/demo.py --work-dir "$state/demo" --executor slurm --partition test --gpus 0
    --time 60 --slurm cpus-per-task=1 --cfg-options "data_root=$state/shapes")
"${sweep[@]}" > "$state/sweep.log" 2>&1 &
watcher=$!
job() { sed -n 's/^ *"job": "\(.*\)",$/\1/p' "$state/demo/$1/submitted.json"; }
mapfile -t trials < <("${sweep[@]}" --dry-run | sed -n 's/ (.*)$//p')
# the first two are running: one gets submitit's signal, as before a time limit, and Slurm requeues the other
for trial in "${trials[@]:0:2}"; do
    wait_for 300 "a checkpoint of $trial" test -f "$state/demo/$trial/last_checkpoint"
    if [[ $trial == "${trials[0]}" ]]; then scancel --signal=USR2 "$(job "$trial")"; else scontrol requeue "$(job "$trial")"; fi
done
wait "$watcher" || { cat "$state/sweep.log"; fail 'the sweep'; }
for trial in "${trials[@]:0:2}"; do
    [[ $(grep -c '^\$ ' "$state/demo/$trial/train.log") == 2 ]] || fail "$trial was not started twice"
    grep -q '^\$ .* --resume$' "$state/demo/$trial/train.log" || fail "$trial did not resume"
    echo "$trial: preempted after an epoch, requeued, resumed"
done
cat "$state/demo/sweep.md"
[[ -s $state/demo/sweep.png ]] || fail 'there is no sweep.png'
tail -n 1 "$state/sweep.log" | grep -q "\"finished\": ${#trials[@]}" || fail 'some trials have not finished'

# Ctrl-C cancels queued jobs and leaves running ones. Background processes of a shell ignore SIGINT by default.
env --default-signal=INT "${sweep[@]}" --work-dir "$state/stopped" > "$state/stopped.log" 2>&1 &
watcher=$!
wait_for 60 'trials in the queue' bash -c '(($(squeue --noheader --states=PENDING | wc -l) >= 2))'
kill -INT "$watcher"
wait "$watcher" && fail 'an interrupted sweep exits with 0'
grep -q 'queued cancelled' "$state/stopped.log" || fail 'Ctrl-C does not report the cancelled jobs'
[[ -z $(squeue --noheader --states=PENDING) ]] || fail 'Ctrl-C left jobs in the queue'
grep 'queued cancelled' "$state/stopped.log"
echo 'test-slurm: passed'
