"""A Dask cluster on SLURM for `kinetics-dance download` and `frames`: run this on the login node, leave it running, use the file it writes.

    pip install 'kinetics_dance[cluster]' dask-jobqueue
    python recipes/dask_slurm.py --jobs 16 --file ~/scheduler.json
    kinetics-dance download --study kinetics --scheduler ~/scheduler.json

The environment and runs/ (or --storage) must lie where all nodes see them. Partition, memory and time are the cluster's business: change them here.
"""
import argparse, json, shutil, signal, sys, tempfile, time
from pathlib import Path


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--jobs', type=int, default=4, help='SLURM jobs; each is a worker')
    a.add_argument('--cores', type=int, default=8, help='clips that a worker makes at a time')
    a.add_argument('--partition', help='of the cluster (default: its own default)')
    a.add_argument('--file', default='scheduler.json', help='where the address is written')
    a.add_argument('--script', action='store_true', help='print the job script and end')
    a = a.parse_args()
    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(
        queue=a.partition, cores=a.cores, processes=1, memory=f'{2*a.cores}GB', walltime='24:00:00',
        # what works is a process of its own for each clip: let SLURM, not Dask, watch the memory
        worker_extra_args=['--memory-limit', '0', '--lifetime', '23h', '--lifetime-stagger', '10m'],
        job_script_prologue=['export OMP_NUM_THREADS=1'],
        scheduler_options={'dashboard_address': '127.0.0.1:0'}, local_directory=tempfile.gettempdir())
    if a.script: return print(cluster.job_script())
    if not shutil.which('sbatch'): sys.exit('there is no sbatch here: run this where jobs are submitted')
    cluster.scale(jobs=a.jobs)
    Path(a.file).write_text(json.dumps(dict(address=cluster.scheduler_address)))
    print(f'scheduler {cluster.scheduler_address}, dashboard {cluster.dashboard_link}; Ctrl-C ends it', flush=True)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        while True:
            time.sleep(60)
            cluster.scale(jobs=a.jobs) # for a job that has come to the end of its time, another one
    except KeyboardInterrupt: pass
    finally:
        Path(a.file).unlink(missing_ok=True)
        cluster.close()


if __name__ == '__main__': main()
