"""From the outside: what a new user does, by README alone, in an empty folder with an empty home.

    python -m rehearsal.outside /tmp/elsewhere                   # --study demo for the study that README runs; the default is the smallest one

Clones the last commit, takes the commands out of README and of "Use it on your videos", and runs them in the order in which they stand there. A
command that is neither run nor named in `LEFT_OUT` with its reason is an error: then the text has changed, and this must follow. The user's own
videos are bodies that move as people did (shared/data/motion), or made up where that is absent.

What a new user had to know that the text did not say, and what became of it: a package was missing from the pins (universal_pathlib; they are whole now);
how long the first command installs, and what it prints then (README shows it); how long `make test` takes (it says so)."""
import argparse, json, os, re, shutil, subprocess, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOTION = ROOT.parent/'shared'/'data'/'motion'/'penn_action_2d_joints.npz'
OWN = 'nbs/pages/own_videos.md'
LEFT_OUT = { # what the text tells the user to do, and why it is not done here
    r'make test': 'a quarter of an hour of its own',
    r'\S*kinetics-dance (download|status|train) --study kinetics': 'needs YouTube or the mirror: see rehearsal.kinetics',
    r'make report STUDY=kinetics': 'needs YouTube or the mirror: see rehearsal.kinetics',
    r'\S*kinetics-dance train --study laptop': 'needs YouTube or the mirror: see rehearsal.kinetics'}

def blocks(text):
    "(language, lines) of the fenced blocks of a page"
    return [(m[1], m[2].splitlines()) for m in re.finditer(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)]

def commands(text):
    "What a reader would type: lines with a prompt, and of blocks without one those that begin with a program of ours"
    out = []
    for language, lines in blocks(text):
        if language not in ('', 'sh', 'bash', 'console'): continue
        prompted = [l[2:] for l in lines if l.startswith('$ ')]
        out += prompted or [l for l in lines if re.match(r'(make|git|\.venv/bin/\S+|kinetics-dance)( |$)', l)]
    return [re.sub(r'\s+#.*', '', c) for c in out]

def own_folder(folder, n=16, actions=('jumping_jacks', 'squat', 'baseball_swing')):
    "Somebody's folder of videos, `<action>/<number>.mp4`"
    from kinetics_dance.synthetic import uploads
    from kinetics_dance.synthetic.motion import made_up_motion, render_motion
    if MOTION.exists():
        import numpy as np
        with np.load(MOTION, allow_pickle=False) as f:
            xy, vis, at, meta = f['xy'], f['vis'], f['offsets'], json.loads(str(f['meta']))
        some = [k for a in actions for k in [k for k, m in enumerate(meta) if m['action'] == a][:n]]
        sequences = [(meta[k]['action'], xy[at[k]:at[k+1]], vis[at[k]:at[k+1]]) for k in some]
    else: sequences = [(s['action'], s['xy'], s['visible']) for s in made_up_motion(n)]
    for k, (action, joints, seen) in enumerate(sequences):
        path = folder/action.replace('_', ' ')/f'{k:03}.mp4'
        path.parent.mkdir(parents=True, exist_ok=True)
        uploads.write_video(path, render_motion(joints, visible=seen))
    return len(sequences)

class User:
    "Somebody in a clone, who has nothing but the text"
    def __init__(self, work):
        self.work, self.clone, self.done = work, work/'clone', []
        keep = ('PATH', 'LANG', 'SSL_CERT_FILE', 'TERM') # and how pip and uv reach their registry here
        self.env = {k: v for k, v in os.environ.items() if k in keep or k.startswith(('PIP_', 'UV_')) or k.lower().endswith('_proxy')}
        self.env |= dict(HOME=str(work/'home'), PIP_NO_CACHE_DIR='1')
        (work/'home').mkdir(parents=True, exist_ok=True)
        self.env['PATH'] = os.pathsep.join(p for p in self.env['PATH'].split(os.pathsep) if '.venv' not in p)

    def types(self, command, said=None, cwd=None):
        "Run a command; fails if it does, or if it does not say what it should"
        start = time.monotonic()
        p = subprocess.run(['bash', '-c', command], cwd=cwd or self.clone, env=self.env, capture_output=True, text=True)
        row = dict(command=said or command, seconds=round(time.monotonic() - start, 1), code=p.returncode,
                   last=(p.stdout.strip() or p.stderr.strip()).splitlines()[-1:])
        self.done.append(row)
        print(f"{row['seconds']:7.1f} s  {row['code']}  {row['command']}", flush=True)
        if p.returncode: raise SystemExit(f'{command}\n{p.stdout[-2000:]}\n{p.stderr[-2000:]}')
        return p.stdout + p.stderr

def follow(user, study, brief=False):
    "README from top to bottom, then the page on own videos"
    seen = set()
    def report(name): # in brief: only the numbered notebooks, and so no site
        return f'.venv/bin/python -m report.run studies/{name}.yaml --only 00_ 01_ 02_ 03_ 04_ 05_ 06_' if brief else f'make report STUDY={name}'
    def all_of(text, changes=()):
        for c in commands(text):
            why = next((w for r, w in LEFT_OUT.items() if re.match(r + '( |$)', c)), None)
            if why: print(f'   not run: {c} ({why})')
            elif c not in seen: user.types(d := dict(changes).get(c, c), c if d == c else f'{d}   (in the place of {c})')
            seen.add(c)
    readme, user.listed = (user.clone/'README.md').read_text(encoding='utf-8'), user.types('make')
    for target in ('report', 'test', 'env', 'clean'): assert re.search(rf'^ +{target} ', user.listed, re.M), f'make does not list {target}'
    all_of(readme.split('## Use it on your videos')[0], {'make report': report(study)})
    assert brief or (user.clone/'_site'/'index.html').exists(), 'no site'
    assert (user.clone/'demo_over_time.png').exists(), 'no picture of what is danced when'

    own = (user.clone/OWN).read_text(encoding='utf-8')
    n = own_folder(user.clone/'videos')
    print(f'   {n} videos in {user.clone/"videos"}')
    yaml_of = lambda text: '\n'.join(next(lines for language, lines in blocks(text) if language == 'yaml')) + '\n'
    a, b = yaml_of(readme.split('## Use it on your videos')[1]), yaml_of(own)
    bare = lambda s: [l.split('#')[0].rstrip() for l in s.splitlines() if l.split('#')[0].strip()]
    assert bare(a) == bare(b), 'README and the page on own videos have different study files'
    (user.clone/'studies'/'mine.yaml').write_text(b)
    user.types(report('mine'), 'make report STUDY=mine')
    seen.add('make report STUDY=mine')
    got = json.loads((user.clone/'runs'/'mine'/'report.json').read_text())
    print(f"   {got['n_test']} test clips")
    first = sorted((user.clone/'videos').rglob('*.mp4'))[0]
    shutil.copy(first, user.clone/'new.mp4')
    all_of(own)
    all_of(readme.split('## Use it on your videos')[1])

def library(user):
    "The lines of Python on the page on own videos, in a notebook elsewhere, as it says"
    code = '\n'.join(next(lines for language, lines in blocks((user.clone/OWN).read_text(encoding='utf-8')) if language == 'python'))
    there = user.work/'elsewhere'
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(user.clone/'videos', there/'videos')
    cell = dict(cell_type='code', id='a', metadata={}, execution_count=None, outputs=[], source=code)
    (there/'mine.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
                                                   nbformat=4, nbformat_minor=5)))
    user.types(f'{user.clone}/.venv/bin/jupyter execute mine.ipynb', 'the lines of Python in a notebook elsewhere', there)

def check_folder(folder):
    "It is filled, and parts of it are made anew: what somebody has there would be lost"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder/'clone'/'.git').exists()):
        raise SystemExit(f'{folder}: is neither empty nor begun by rehearsal.outside; name another folder')

def main():
    a = argparse.ArgumentParser(prog='python -m rehearsal.outside', description=__doc__.split('\n')[0])
    a.add_argument('folder', type=Path, help='an empty folder, or one where this was begun')
    a.add_argument('--study', default='smoke', help='what `make report` runs (README: demo)')
    a.add_argument('--brief', action='store_true', help='only the numbered notebooks, and no site')
    a = a.parse_args()
    check_folder(a.folder)
    user = User(a.folder.resolve())
    head = lambda at: subprocess.run(['git', '-C', str(at), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout
    if user.clone.exists() and head(user.clone) != head(ROOT): raise SystemExit(f'{user.clone}: the clone of another commit; take it away, or name another folder')
    if not user.clone.exists(): user.types(f'git clone -q {ROOT} {user.clone}', 'git clone', user.work)
    try:
        follow(user, a.study, a.brief)
        library(user)
    finally: (user.work/'done.json').write_text(json.dumps(user.done, indent=1))
    print(f'{len(user.done)} commands, {sum(r["seconds"] for r in user.done):.0f} s; nothing was needed that the text does not say')

if __name__ == '__main__': main()
