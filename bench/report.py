"""The demo study from nothing: seconds a stage, peak memory, and what a second run costs.

    python bench/report.py            # in a temporary folder; about ten minutes on two cores

The bars are the project's own: 15 minutes and 4 GB for the study and its site, 20 s for a run with nothing changed."""
import json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path
import psutil

ROOT = Path(__file__).resolve().parent.parent


def run(command):
    "Run a command; returns seconds and the peak of the memory of its process and all below it, bytes"
    p = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL); t, peak = time.perf_counter(), 0
    while p.poll() is None:
        total = 0
        for q in [p, *p.children(recursive=True)]:
            # proportional set size: pages that processes share are counted once
            try: total += q.memory_full_info().pss
            except (psutil.Error, AttributeError): pass
        peak = max(peak, total); time.sleep(.5)
    if p.returncode: sys.exit(f'{" ".join(command)} ended with {p.returncode}')
    return time.perf_counter()-t, peak


def main():
    with tempfile.TemporaryDirectory() as d:
        study = [sys.executable, '-m', 'report.run', str(ROOT/'studies/demo.yaml'), '--runs', d]
        site = [sys.executable, '-m', 'report.site', 'demo', '--runs', d, '--out', f'{d}/_site']
        cold, peak = run(study); built, peak2 = run(site)
        again = run(study)[0]+run(site)[0]
        report = json.loads(Path(d, 'demo/report.json').read_text())
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total/2**30:.0f} GiB, Python {platform.python_version()}')
    for k,v in report['seconds'].items(): print(f'  {k:24}{v:8.1f} s')
    rows = [('study and site, cold', cold+built, 900, 's'), ('peak memory', max(peak, peak2)/1e9, 4, 'GB'), ('nothing changed', again, 20, 's')]
    for what,got,bar,unit in rows: print(f'{what:26}{got:8.1f} {unit:3} bar {bar:5} {unit:3} ratio {got/bar:.2f}')


if __name__ == '__main__': main()
