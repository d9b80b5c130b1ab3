"""Short clips and film strips, one of each class of a study: people would rather look than read.

The site makes them from the study's own videos. For results that are kept without videos they can be kept, too:

    python -m report.gallery runs/demo results/demo/media"""
import hashlib, io, json, os, re, sys, tempfile
from pathlib import Path
from urllib.parse import quote
from kinetics_dance.core.text import for_html
from .common import UserError, main, read_json, write_atomic, write_json

SECONDS, HEIGHT, FRAMES = 3, 192, 6      # of a clip; frames of a strip


def pick(folder):
    """Clips to show: `[(what the group is about, [row of clips.csv, …])]`. Classes that come in pairs stand side by side, both cut out of
    one upload, so that nothing but the movement differs; else each class alone."""
    from kinetics_dance.clips.table import read_export
    t = read_export(folder/'clips.csv')
    t = t[t.status == 'ok']
    t = t[[(folder/str(p)).exists() or (folder/f'frames/{c}.npy').exists() for p, c in zip(t.path, t.clip_id)]]
    t = t.sort_values(['split', 'clip_id'], key=lambda s: s != 'test' if s.name == 'split' else s, kind='stable')
    first = lambda t: t.iloc[0].to_dict()
    groups, left = [], list(dict.fromkeys(sorted(t.label)))
    for p in (read_json(folder/'known.json') or {}).get('pairs', []):
        a, b = (t[t.label == k] for k in p['classes'])
        both = [g for g in a.group if g in set(b.group)]
        if not both: continue
        groups.append((p['differs'], [first(x[x.group == both[0]]) for x in (a, b)]))
        left = [k for k in left if k not in p['classes']]
    return groups + [(None, [first(t[t.label == k])]) for k in left]


def frames_of(folder, row):
    "(frames of a clip (T,H,W,3), frames a second), from its video, else from the frame store"
    import numpy as np
    if (video := folder/str(row['path'])).is_file():
        from kinetics_dance.video.reading import frame_times, read_frames
        times = frame_times(video)
        rate = min((len(times) - 1)/max(times[-1] - times[0], 1e-6) if len(times) > 1 else 1, 60)
        step = max(1, round(rate/15))
        at = [i for i in range(0, len(times), step) if times[i] - times[0] < SECONDS]
        return read_frames(video, indices=at), rate/step
    x = np.load(folder/f"frames/{row['clip_id']}.npy", mmap_mode='r', allow_pickle=False)
    return np.asarray(x), len(x)/SECONDS


def shrink(frames):
    "Frames at a height of `HEIGHT` at most, sides even as H.264 wants them"
    import numpy as np
    from PIL import Image
    t, h, w, _ = frames.shape
    s = min(1, HEIGHT/h)
    size = (max(2, round(w*s/2)*2), max(2, round(h*s/2)*2))
    return frames if size == (w, h) else np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX if s < 1 else Image.Resampling.NEAREST)) for f in frames])


def film(frames, rate):
    "H.264 in MP4 without sound, its index at the front so that it starts at once"
    import av
    from fractions import Fraction
    with tempfile.NamedTemporaryFile(suffix='.mp4') as tmp:
        f = av.open(tmp.name, 'w', options={'movflags': 'faststart'})
        s = f.add_stream('libx264', rate=Fraction(rate).limit_denominator(1001), options={'crf': '27', 'preset': 'slow', 'threads': '1', 'bf': '0'})
        s.height, s.width, s.pix_fmt = *frames.shape[1:3], 'yuv420p'
        for x in frames: f.mux(s.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        f.mux(s.encode()); f.close()
        return Path(tmp.name).read_bytes()


def strip(frames):
    "A film strip of the library's as WebP"
    import matplotlib, numpy as np
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    from kinetics_dance.video.film_strip import film_strip
    from PIL import Image
    ax = film_strip(frames[(2*np.arange(FRAMES) + 1)*len(frames)//(2*FRAMES)], ncols=FRAMES)
    png, out = io.BytesIO(), io.BytesIO()
    ax.figure.savefig(png, dpi=110, transparent=True, bbox_inches='tight', pad_inches=0)
    plt.close(ax.figure)
    Image.open(png).save(out, 'webp', quality=78, method=4)
    return out.getvalue()


def jpeg(frame):
    from PIL import Image
    buf = io.BytesIO(); Image.fromarray(frame).save(buf, 'jpeg', quality=78, optimize=True)
    return buf.getvalue()


def file_name(label, taken):
    "A name for the files of a class, in letters that every disk and address takes; no two classes share one"
    name = re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')[:60]
    if not name or name in taken: name = f'{name}-{hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:10]}'.strip('-')
    taken.add(name)
    return name


def make(folder, out):
    "Write clips, posters, strips and `gallery.json` into `out`, if anything changed; what is in gallery.json"
    groups = pick(folder)
    key = hashlib.sha256((json.dumps(groups, sort_keys=True, default=str) + Path(__file__).read_text(encoding='utf-8')).encode()).hexdigest()[:16]
    old = read_json(out/'gallery.json') or {}
    if old.get('key') == key and all((out/c[k]).exists() for c in old['clips'] for k in ('video', 'poster', 'strip')): return old
    clips, taken = [], set()
    for differs, rows in groups:
        for r in rows:
            frames, rate = frames_of(folder, r)
            frames, name = shrink(frames), file_name(r['label'], taken)
            for ext, data in (('mp4', film(frames, rate)), ('jpg', jpeg(frames[len(frames)//2])), ('webp', strip(frames))): write_atomic(out/f'{name}.{ext}', data)
            clips.append(dict(differs=differs, label=r['label'], clip=r['clip_id'], source=r['source'], upload=str(r['youtube_id']), video=f'{name}.mp4', poster=f'{name}.jpg',
                              strip=f'{name}.webp', width=frames.shape[2], height=frames.shape[1], seconds=round(len(frames)/rate, 2)))
    res = dict(key=key, clips=clips)
    write_json(out/'gallery.json', res)
    return res


def find(root, study, folder):
    "(gallery.json, its folder) of a study: kept under results/, or made from what the run has; None where there is neither"
    kept = root/'results'/study/'media'
    if (folder/'clips.csv').exists() and ((folder/'videos').is_dir() or (folder/'frames').is_dir()):
        out = folder/'.site/media'
        g = make(folder, out)
        if g['clips']: return g, out
    for d in (folder/'media', kept):
        if g := read_json(d/'gallery.json'): return g, d


def card(c, folder, media, strips=True):
    "HTML of one clip; `media.save` gives the address that its files have on the site"
    url = lambda k: media.save((folder/c[k]).read_bytes(), c[k].rsplit('.', 1)[1])
    label, where = for_html(c['label'].replace('_', ' ')), ''
    if c.get('source') in ('youtube', 'cvdf'):        # a clip of somebody else's: say whose
        where = f' <a href="https://www.youtube.com/watch?v={quote(c["upload"], safe="")}">from YouTube</a>'
    still = f'<img class="strip" src="{url("strip")}" alt="{FRAMES} frames of the clip {label}, from first to last" loading="lazy">' if strips else ''
    return (f'<figure class="clip"><video controls loop muted playsinline preload="none" width="{c["width"]}" height="{c["height"]}" poster="{url("poster")}" '
            f'aria-label="A clip of {label}, {c["seconds"]:g} seconds, without sound"><source src="{url("video")}" type="video/mp4"></video>{still}'
            f'<figcaption>{label}{where}</figcaption></figure>')


ABOUT = dict(order='the same frames in another order', tempo='the same step at another tempo', rhythm='the same poses in another rhythm')


def about(differs): return for_html(ABOUT.get(differs, differs))


def show(g, folder, media, only=None, strips=True):
    "HTML of a gallery: groups side by side; `only` so many groups"
    groups = {}
    for c in g['clips']: groups.setdefault((c['differs'], c['upload'] if c['differs'] else c['label']), []).append(c)
    items = []
    for (differs, _), cs in list(groups.items())[:only]:
        cards = ''.join(card(c, folder, media, strips) for c in cs)
        items.append(f'<div class="pair" role="group" aria-label="{about(differs)}">{cards}<p class="pair-note">{about(differs)}</p></div>' if differs else cards)
    return '<div class="gallery">' + ''.join(items) + '</div>'


def run():
    if len(sys.argv) != 3: raise UserError('usage: python -m report.gallery <folder of a study> <folder for clips>, such as runs/demo results/demo/media')
    folder, out = map(Path, sys.argv[1:])
    if not (folder/'clips.csv').exists(): raise UserError(f'{folder}: no clips.csv there: not the folder of a study that was run')
    g = make(folder, out)
    size = sum((out/c[k]).stat().st_size for c in g['clips'] for k in ('video', 'poster', 'strip'))
    print(f"{len(g['clips'])} clips in {os.path.relpath(out)}, {size/1e3:.0f} kB")


if __name__ == '__main__': main(run)
