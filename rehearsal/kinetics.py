"""Kinetics at full size, with nothing replaced but the far end: the 13,331 + 741 real rows through `studies/kinetics.yaml`.

    python -m rehearsal.kinetics cvdf youtube        # or with --uploads 500: the same with fewer rows
    python -m rehearsal.kinetics laptop              # studies/laptop.yaml on the real rows, every notebook, a real backbone

A loopback server stands for YouTube and for the mirror. The study is run by `report.run`, killed twice on the way, and finished; then every row of
the clip table must say what it was known to say. Stop it and call it again: it goes on where it was. Results go to results/kinetics_rehearsal/."""
import argparse, json, os, platform, signal, subprocess, sys, threading, time
from pathlib import Path
import pandas as pd, psutil, yaml
from .far_end import LISTS, ROOT, Videos, expected, fates, make_tars, read_rows, served_uploads, tar_plan
from faults import Faults # far_end has said where it is
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.video.encoding import file_digest

RESULTS = ROOT/'results'/'kinetics_rehearsal'

# ---- the server

def serve(rows, fate, work, everything):
    "The far end of both sources, at the address it had the last time"
    far = work/'far'
    far.mkdir(parents=True, exist_ok=True)
    videos = Videos(far)
    bodies, plan = served_uploads(rows, fate, videos, far)
    tars = make_tars(rows, fate, videos, far)
    names = dict(train='train', validate='val')
    for split, name in names.items():
        f = far/f'{name}.csv'
        rows[rows.split == split].to_csv(f, index=False)
        bodies[f'/annotations/{name}.csv'] = LISTS/f'k700_2020_dancing_{split}.csv' if everything else f
    if everything: bodies['/annotations/val.csv'] = LISTS/'kinetics-700_2020_val.csv' # all 700 classes
    note = far/'port'
    port = int(note.read_text()) if note.exists() else 0
    server = Faults(bodies | tars, plan | tar_plan(tars, everything), port=port)
    server.__enter__()
    note.write_text(server.url.rsplit(':', 1)[1])
    return server

# ---- the study

class Meter(threading.Thread):
    "What the processes of a run take together, looked at every two seconds: peak of their PSS, CPU seconds, how many"
    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.most, self.cpu, self.end = pid, 0, 0, {}, threading.Event()
    def run(self):
        while not self.end.wait(2):
            try: family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
            except psutil.Error: return
            total = 0
            for p in family:
                try:
                    total += p.memory_full_info().pss
                    t = p.cpu_times()
                    # a worker's own children (ffmpeg) live too briefly to be seen; those of the others are in the family
                    own = t.user + t.system + (t.children_user + t.children_system if 'spawn_main' in ' '.join(p.cmdline()) else 0)
                    self.cpu[p.pid, p.create_time()] = own
                except psutil.Error: pass
            self.peak, self.most = max(self.peak, total), max(self.most, len(family))

def study_file(name, work, runs, changes):
    "The project's study file with these changes, beside the runs"
    p = yaml.safe_load((ROOT/'studies'/f'{name}.yaml').read_text()) | changes
    path = runs/f'{name}.yaml'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(p, sort_keys=False))
    return path

def run(study, runs, log, *args, kill=None):
    "Run a study; `kill`: a condition, and whom to kill when it holds. Returns what it took"
    cpu = os.times()
    start = time.monotonic()
    with log.open('a') as out:
        p = subprocess.Popen([sys.executable, '-m', 'report.run', str(study), '--runs', str(runs), *args], cwd=ROOT, stdout=out, stderr=out,
                             start_new_session=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        meter = Meter(p.pid)
        meter.start()
        killed = False
        while p.poll() is None:
            if kill and kill[0]():
                family = [psutil.Process(p.pid)] + (psutil.Process(p.pid).children(recursive=True) if kill[1] == 'all' else [])
                for q in family:
                    try: q.send_signal(signal.SIGKILL)
                    except psutil.Error: pass
                killed = True
                p.wait()
            time.sleep(.2)
    meter.end.set()
    after = os.times()
    waited = after.children_user + after.children_system - cpu.children_user - cpu.children_system
    return dict(seconds=round(time.monotonic() - start, 1), killed=killed, code=p.returncode, peak_mb=round(meter.peak/1e6), processes=meter.most,
                cpu_seconds=round(max(waited, sum(meter.cpu.values())), 1))

def count(folder, pattern): return sum(1 for p in folder.glob(pattern) if p.name[0] != '.') if folder.is_dir() else 0

def size(folder): return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) if folder.is_dir() else 0

def download(source, rows, fate, server, work, jobs, results=RESULTS, **changes):
    "`00_data` and `01_frames` of the Kinetics study with one source, killed in each of them, and finished"
    runs = work/source
    folder, log = runs/'kinetics', runs/'log'
    url = server.url
    study = study_file('kinetics', work, runs, dict(source=source, annotations=[f'{url}/annotations/{n}.csv' for n in ('train', 'val')],
        url_template=f'{url}/{{id}}.mp4', mirror=f'{url}/', sleep=0, jobs=jobs, compression='jpeg') | changes)
    state_file = runs/'legs.json'
    legs = json.loads(state_file.read_text()) if state_file.exists() else []
    alive = sum(f in ('fine',) for f in fate.values())
    plan = [('00', (lambda: count(folder/'videos', '*.mp4') > .3*alive, 'runner')), ('01', (lambda: count(folder/'frames', '*.json') > .3*alive, 'all')),
            ('01', None)]
    for k, (stage, kill) in enumerate(plan):
        if len(legs) > k: continue
        only = ['--only', '00_data', '01_frames']
        before = (server.hits.total(), count(folder/'videos', '*.mp4'), count(folder/'frames', '*.json'))
        leg = run(study, runs, log, *only, kill=kill)
        leg |= dict(videos=count(folder/'videos', '*.mp4') - before[1], stored=count(folder/'frames', '*.json') - before[2],
                    requests=server.hits.total() - before[0])
        print(f'{source}, part {k + 1}: {leg}', flush=True)
        if kill and not leg['killed']: raise SystemExit(f'{source}: it ended before it could be killed; see {log}')
        if not kill and leg['code']: raise SystemExit(f'{source}: it failed; see {log}')
        legs.append(leg)
        state_file.write_text(json.dumps(legs, indent=1))
    return check(source, rows, fate, folder, legs, results)

def check(source, rows, fate, folder, legs, results=RESULTS):
    "Every row of the table against what it was known to say, and what is on disk against the table"
    t = ClipTable(folder/'clips.sqlite').frame()
    want = t.youtube_id.map(expected(rows, fate, source))
    got = t.reason.where(t.status != 'ok', 'ok')
    wrong = t[want != got]
    on_disk = {p.stem for p in (folder/'videos').iterdir() if p.name[0] != '.'}
    index = pd.read_parquet(folder/'frames'/'index.parquet')
    stages = {s: json.loads((folder/'stages'/f'{s}.json').read_text())['seconds'] for s in ('00_data', '01_frames')}
    sample = t[t.status == 'ok'].sample(min(200, int((t.status == 'ok').sum())), random_state=0)
    out = dict(
        source=source, rows_of_the_lists=len(rows), rows_of_the_table=len(t), uploads=int(t.youtube_id.nunique()),
        reasons={k: int(v) for k, v in got.value_counts().items()},
        rows_not_as_expected=len(wrong), first_wrong=[f'{r.youtube_id}: {g}, not {w}' for r, g, w in zip(wrong.itertuples(), got[wrong.index],
                                                                                                      want[wrong.index])][:10],
        fates={k: int(v) for k, v in pd.Series(fate).value_counts().items()},
        files_not_in_the_table=len(on_disk - set(t.clip_id[t.status == 'ok'])), clips_without_a_file=len(set(t.clip_id[t.status == 'ok']) - on_disk),
        stored_clips=len(index), stored_not_in_the_table=len(set(index.clip_id) ^ set(t.clip_id[t.status == 'ok'])),
        damaged_of_200=sum(file_digest(folder/r.path)['sha256'] != r.sha256 for r in sample.itertuples()),
        machine=f'{os.cpu_count()} cores ({platform.machine()}, {time.strftime("%B %Y")})', asked_again=int((t.attempts > 1).sum()), legs=legs, seconds=round(sum(l['seconds'] for l in legs), 1),
        cpu_seconds=round(sum(l['cpu_seconds'] for l in legs), 1), peak_mb=max(l['peak_mb'] for l in legs), last_run_of_each_notebook=stages,
        disk_mb=dict(videos=round(size(folder/'videos')/1e6, 1), frames=round(size(folder/'frames')/1e6, 1),
                     table=round((folder/'clips.sqlite').stat().st_size/1e6, 1), notebooks=round(size(folder/'executed')/1e6, 1)))
    results.mkdir(parents=True, exist_ok=True)
    (results/f'{source}.json').write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps({k: v for k, v in out.items() if k != 'legs'}, indent=1), flush=True)
    return out

# ---- all notebooks

# what the far end has to show needs no more pixels, and nothing can be learned from it
SMALL = dict(seeds=[0], epochs=3, lr=[.001], n_frames=16, clip_frames=8, frame_height=72, frame_width=96, crop_height=64, crop_width=64, threads=1)

def laptop(rows, fate, server, work, jobs, **changes):
    "`studies/laptop.yaml` on the real rows: 100 training and 20 test clips a class, MobileNetV2 left as it is, every numbered notebook"
    runs, url, changes = work/'laptop', server.url, SMALL | changes
    weights = LISTS.parent/'weights'/'mobilenet_v2_torchvision_keys.npz'
    study = study_file('laptop', work, runs, dict(source='youtube', annotations=[f'{url}/annotations/{n}.csv' for n in ('train', 'val')],
        url_template=f'{url}/{{id}}.mp4', sleep=0, jobs=jobs, backbone='mobilenet_v2', weights=str(weights)) | changes)
    numbered = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
    leg = run(study, runs, runs/'log', '--jobs', '1', '--only', *numbered)
    folder, state_file = runs/'laptop', runs/'legs.json'
    legs = [*(json.loads(state_file.read_text()) if state_file.exists() else []), leg]
    state_file.write_text(json.dumps(legs, indent=1))
    if leg['code']: raise SystemExit(f'laptop: it failed; see {runs/"log"}')
    report = json.loads((folder/'report.json').read_text())
    t = ClipTable(folder/'clips.sqlite').frame()
    got, want = t.reason.where(t.status != 'ok', 'ok'), t.youtube_id.map(expected(rows, fate, 'youtube'))
    models = [json.loads(p.read_text()) for p in sorted(folder.glob('models/*/seed*/c*.json'))]
    out = dict(
        note='the same five videos lie under all labels: the accuracies of this run mean nothing, and none is given', changes=changes,
        rows_of_the_table=len(t), clips={s: int(n) for s, n in t[t.status == 'ok'].split.value_counts().items()},
        clips_a_class={s: [int(n.min()), int(n.max())] for s, n in t[t.status == 'ok'].groupby(['split', 'label']).size().groupby('split')},
        reasons={k: int(v) for k, v in got.value_counts().items()}, rows_not_as_expected=int((got != want).sum()),
        models={m['name']: dict(parameters=m['parameters'], seconds=round(m['seconds'])) for m in models},
        test_clips=report.get('n_test'), seconds_of_each_notebook=report.get('seconds'), legs=legs, seconds=round(sum(x['seconds'] for x in legs), 1),
        cpu_seconds=round(sum(x['cpu_seconds'] for x in legs), 1), peak_mb=max(x['peak_mb'] for x in legs), disk_mb=round(size(folder)/1e6))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS/'laptop.json').write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps({k: v for k, v in out.items() if k != 'legs'}, indent=1), flush=True)
    return out

# ---- what it comes to

REAL = dict(cut=1.53, frames=.15, clip_mb=.81, store_mb=2.10) # of one real clip: CPU seconds and MB, measured by bench/kinetics.py

def summary():
    "The page of the site and the README of the results, from what was run"
    got = {n: json.loads(p.read_text()) for n in ('cvdf', 'youtube', 'laptop') if (p := RESULTS/f'{n}.json').exists()}
    minutes = lambda s: f'{s/60:.0f} min' if s >= 600 else f'{s:.0f} s'
    names = dict(cvdf='mirror', youtube='YouTube')
    runs = [(names[n], got[n]) for n in names if n in got]
    reasons = sorted({k for _, g in runs for k in g['reasons']} - {'ok'})
    rows = [['rows of the real lists', *(f"{g['rows_of_the_lists']:,}" for _, g in runs)],
            ['clips of the study, after the leak and the double labels', *(f"{g['rows_of_the_table']:,}" for _, g in runs)],
            ['there', *(f"{g['reasons']['ok']:,}" for _, g in runs)],
            *([f'not there: {k}', *(f"{g['reasons'].get(k, 0):,}" for _, g in runs)] for k in reasons),
            ['rows that did not end as they had to', *(f"{g['rows_not_as_expected']}" for _, g in runs)],
            ['files too many, too few, damaged', *(f"{g['files_not_in_the_table']}, {g['clips_without_a_file']}, {g['damaged_of_200']}" for _, g in runs)],
            ['asked more than once', *(f"{g['asked_again']:,}" for _, g in runs)],
            ['in the frame store', *(f"{g['stored_clips']:,}" for _, g in runs)],
            ['time, all starts', *(minutes(g['seconds']) for _, g in runs)],
            ['CPU seconds a clip, all of it', *(f"{g['cpu_seconds']/g['rows_of_the_table']:.2f}" for _, g in runs)],
            ['memory at its peak, all processes (PSS)', *(f"{g['peak_mb']:,} MB" for _, g in runs)],
            ['clips, MB', *(f"{g['disk_mb']['videos']:,.0f}" for _, g in runs)], ['frames (JPEG), MB', *(f"{g['disk_mb']['frames']:,.0f}" for _, g in runs)],
            ['table, MB', *(f"{g['disk_mb']['table']:,.1f}" for _, g in runs)]]
    md = lambda head, rows: '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---'] + ['---:']*(len(head) - 1), *rows])
    full = max((g for _, g in runs), key=lambda g: g['rows_of_the_table'])
    n, ok = full['rows_of_the_table'], full['reasons']['ok']
    more = full['cpu_seconds']/n # what everything but decoding and encoding takes, and that of the small videos, too
    real = [['cutting and checking', f"{REAL['cut']} s a clip", f"{ok*REAL['cut']/3600:.1f} h of one core"],
            ['taking out the frames', f"{REAL['frames']} s a clip", f"{ok*REAL['frames']/3600:.1f} h of one core"],
            ['all the rest: asking, table, checks, notebooks', f'at most {more:.2f} s a clip, all of this run', f'{n*more/3600:.1f} h of one core'],
            ['waiting for YouTube, 300 an hour', '12 s a clip', f'{n/300:.0f} h'],
            ['clips on disk', f"{REAL['clip_mb']} MB", f"{ok*REAL['clip_mb']/1e3:.0f} GB"],
            ['frames on disk, 32 of 128×171', f"{REAL['store_mb']} MB", f"{ok*REAL['store_mb']/1e3:.0f} GB"],
            ['memory', '', ' to '.join(dict.fromkeys(f"{f(g['peak_mb'] for _, g in runs)/1e3:.1f}" for f in (min, max))) + ' GB, all processes of a download with four workers']]
    part = [f"The {names[k]} run has {g['rows_of_the_lists']:,} of the 14,072 rows." for k, g in got.items() if k in names and g['rows_of_the_lists'] < 14_072]
    notes = [leg['note'] for _, g in runs for leg in g['legs'] if 'note' in leg] # what was done by hand between two starts
    text = f"""# Kinetics, rehearsed

> The real lists at their real size through the real notebooks, with a server on this machine in place of YouTube and of the mirror.

Nothing was fetched from YouTube here. What can be tried without it was tried: {full['rows_of_the_lists']:,} rows as DeepMind and CVDF publish them, with their ids that begin with a dash,
their double labels and their leak, through `studies/kinetics.yaml`. Behind the addresses was a server on this machine: five small rendered videos under every id, each as long as
the id needs (96×72 pixels, 4 frames a second; up to 6,000 s). 8.1 % of the ids were gone, as many as in December 2022, and of every kind of fault there was 1 %: busy (503) for
a while, down for good, *too many requests* (429), connections that are reset, files that are cut, pages in the place of videos, empty files, slow ones. The mirror's
tars had empty, cut, short and false clips in them, and their transfers broke in six ways. What must become of each row was known before.

Each run was killed twice (`kill -9`): once the runner alone, in the middle of the download, and once it and all its processes, in the middle of the frames.{''.join(' ' + x for x in part + notes)}

{md(['', *(n for n, _ in runs)], rows)}

It ran on {full['machine']}. Settings that were not those of the study file:
addresses, `sleep: 0`, `jobs: 4`, and `compression: jpeg`, because the frames as they are would have filled the disk.

## What a real run will take

{md(['', 'one clip', f'{n:,} clips, {ok:,} of them there'], real)}

The seconds and MB of a real clip are those of five real ones ([Run it on Kinetics](kinetics.md)).
"""
    if lap := got.get('laptop'):
        a, c = lap['clips_a_class'], lap['clips']
        text += f"""
## Every notebook

`studies/laptop.yaml` went the whole road, notebooks 00 to 06, on the real classes and ids through YouTube's source: 15 classes with {a['train'][0]} to {a['train'][1]} training and {a['test'][0]} to {a['test'][1]} test clips
each ({c['train']:,} + {c.get('valid', 0):,} + {c['test']:,}). {lap['rows_of_the_table']:,} rows were asked for to have them, because the next in line takes the place of one that is gone; {lap['rows_not_as_expected']} of them ended otherwise than they had to.
The picture network was MobileNetV2 with ImageNet weights, left as it is; small frames, {lap['changes'].get('epochs', 30)} epochs, {len(lap['changes'].get('seeds', [0, 1, 2]))} seed. **The accuracies of this run mean nothing and are not given**: the same
five videos lie under all fifteen labels. It took {minutes(lap['seconds'])}, {lap['cpu_seconds']/60:.0f} CPU minutes and {lap['peak_mb']/1e3:.1f} GB of memory at its peak.
"""
    text += """
Run it with `make rehearsal-kinetics`, where the lists are at hand; `results/kinetics_rehearsal/` has the numbers.
"""
    page = ROOT/'nbs'/'pages'/'kinetics_rehearsal.md'
    page.write_text(text, encoding='utf-8')
    (RESULTS/'README.md').write_text(text.replace('](kinetics.md)', '](../../nbs/pages/kinetics.md)'), encoding='utf-8')
    print(page)

def main():
    a = argparse.ArgumentParser(prog='python -m rehearsal.kinetics', description=__doc__.split('\n')[0])
    a.add_argument('what', nargs='+', choices=['cvdf', 'youtube', 'laptop', 'summary'])
    a.add_argument('--uploads', type=int, default=0, help='only about so many rows of the lists (0: all of them)')
    a.add_argument('--work', type=Path, help='folder for all of it (default: runs/rehearsal)')
    a.add_argument('--jobs', type=int, default=4, help='downloads at a time')
    a.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='other parameters for the laptop study')
    a = a.parse_args()
    if not LISTS.is_dir(): raise SystemExit('the Kinetics lists (shared/data/kinetics) are not beside this checkout')
    if a.what == ['summary']: return summary()
    rows = read_rows(a.uploads)
    fate, work = fates(rows), (a.work or ROOT/'runs'/f'rehearsal{a.uploads or ""}').resolve()
    server = serve(rows, fate, work, not a.uploads)
    try:
        for w in a.what:
            if w == 'summary': summary()
            elif w == 'laptop': laptop(rows, fate, server, work, a.jobs, **{k: yaml.safe_load(v) for k, v in (x.split('=', 1) for x in a.set)})
            else: download(w, rows, fate, server, work, a.jobs, **(dict(n_valid=1) if a.uploads else {}))
    finally: server.__exit__()

if __name__ == '__main__': main()
