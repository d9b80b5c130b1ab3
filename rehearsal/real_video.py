"""Real people moving: small public sets of videos, as lists with groups that a study with folds can take.

    python -m rehearsal.real_video weizmann FOLDER         # writes runs/real_videos/weizmann.csv; then make report STUDY=weizmann
    python -m rehearsal.real_video ut_interaction FOLDER   # letterboxed copies and their list
    python -m rehearsal.real_video gestures FOLDER         # runs/real_videos/gestures.csv
    python -m rehearsal.real_video size_only STUDY         # a row for what width, height and length alone give away
    python -m rehearsal.real_video publish STUDY ...       # results/<study>: report, tables and predictions, and the page "Real videos"

FOLDER is where you have unpacked a set; its sub-folders do not matter, the file names do. runs/real_videos gets links to them. No video is copied into the repository or shipped. Where the owners offer them:

- Weizmann, "Actions as Space-Time Shapes" (Blank et al. 2005, ICCV; Gorelick et al. 2007, IEEE TPAMI 29, 2247): <https://www.wisdom.weizmann.ac.il/~vision/SpaceTimeActions.html>. Ten actions of nine people, `<person>_<action>.avi`; of a person who runs twice, `lena_run1.avi` and `lena_run2.avi`.
- UT-Interaction (Ryoo and Aggarwal 2009, ICCV; SDHA contest 2010): <https://cvrc.ece.utexas.edu/SDHA2010/Human_Interaction.html>. The segmented clips, `<number>_<sequence>_<class>.avi`: six interactions in twenty sequences.
- Body gestures of ten people (J. J. Oliver, final degree work): <https://github.com/joanjaumeoliver/GESTURE-PROJECT>, `dataset/BodyGestureDataset`. Fifteen gestures at three distances, `<person>/<kind>/<gesture>_<number>_<distance>_<part>.avi`; it states no licence.

How long it takes is on the page "Real videos" of the site."""
import argparse, json, re, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd
from kinetics_dance.core.base import StudyError, project_root, study_folder, writing

ROOT = Path(__file__).resolve().parent.parent
LISTS = Path('runs')/'real_videos'
ACTIONS = dict(bend='bend', jack='jumping jack', jump='jump', pjump='jump in place', run='run', side='side', skip='skip', walk='walk', wave1='wave one hand', wave2='wave two hands')
INTERACTIONS = ['shake hands', 'hug', 'kick', 'point', 'punch', 'push']
VIDEOS = '.avi', '.mp4', '.mkv', '.mov', '.webm'


def weizmann_name(path):
    "(label, person) of a file name of the Weizmann set, or None: `lena_run2` is a second run of lena"
    m = re.fullmatch(r'([a-z]+)_([a-z]+\d?)', path.stem.lower())
    if not m: return None
    action = m[2] if m[2] in ACTIONS else m[2].rstrip('12')
    return (ACTIONS[action], m[1]) if action in ACTIONS else None


def ut_name(path):
    "(label, sequence) of a segmented clip of UT-Interaction, or None: class 6 is people who do not interact"
    m = re.fullmatch(r'\d+_(\d+)_(\d)', path.stem)
    return (INTERACTIONS[int(m[2])], f'sequence {int(m[1]):02}') if m and int(m[2]) < len(INTERACTIONS) else None


def gesture_name(path):
    "(label, person) of a file of the body gestures, or None: the person is a folder, S1 to S10"
    m, who = re.fullmatch(r'([a-z]+)_\d+_\d+m_[a-z]+', path.stem), [x for x in path.parts if re.fullmatch(r'S\d+', x)]
    return (m[1], f'person {int(who[-1][1:]):02}') if m and who else None


SETS = dict(weizmann=(weizmann_name, '<person>_<action>.avi'), ut_interaction=(ut_name, '<number>_<sequence>_<class>.avi'),
            gestures=(gesture_name, 'S<person>/.../<gesture>_<number>_<distance>_<part>.avi'))


def list_videos(name, folder):
    "The videos of a set as rows path, label, group; `StudyError` where the folder holds none"
    read, example = SETS[name]
    folder = Path(folder)
    if not folder.is_dir(): raise StudyError(f'{folder}: is not a folder')
    files = [p for p in sorted(folder.rglob('*')) if p.suffix.lower() in VIDEOS and p.is_file()]
    rows = [(str(p.resolve()), *found) for p in files if (found := read(p))]
    if not rows: raise StudyError(f'{folder}: none of its {len(files)} videos is named like those of {name} ({example})')
    table = pd.DataFrame(rows, columns=['path', 'label', 'group'])
    names = table.path.map(lambda p: own_name(name, Path(p)))
    names = names.str.rpartition('.')[0]
    if names.duplicated().any(): raise StudyError(f'{folder}: {names[names.duplicated()].iloc[0]} is there twice; name the folder of one copy')
    return table


def letterbox(path, to, size=192):
    "A copy of a video that fits into a square, with black bars: every video has the same width and height"
    import imageio_ffmpeg
    if to.exists(): return
    fit = f'scale={size}:{size}:force_original_aspect_ratio=decrease:force_divisible_by=2,pad={size}:{size}:(ow-iw)/2:(oh-ih)/2:black,setsar=1'
    with writing(to) as part:
        done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', '-i', path, '-vf', fit, '-an', '-c:v', 'libx264', '-crf', '12', '-pix_fmt', 'yuv420p', str(part)],
                              capture_output=True, text=True)
        if done.returncode: raise StudyError(f'{path}: cannot be read: {done.stderr.strip().splitlines()[-1][:200]}')


def make_list(name, folder):
    "Write the list of a set to runs/real_videos, beside links to its videos that have the same names wherever the set lies; of UT-Interaction letterboxed copies"
    at, table = project_root()/LISTS, list_videos(name, folder)
    (at/name).mkdir(parents=True, exist_ok=True)
    made = [at/name/own_name(name, Path(p)) for p in table.path]
    for p, to in zip(table.path, made):
        if name == 'ut_interaction': letterbox(p, to)
        else:
            to.unlink(missing_ok=True)
            to.symlink_to(p)
    table = table.assign(path=[f'{name}/{p.name}' for p in made], original=table.path)
    with writing(at/f'{name}.csv') as part: table.drop(columns='original').to_csv(part, index=False)
    with writing(at/f'{name}_originals.csv') as part: table[['path', 'original']].to_csv(part, index=False) # `size_only` asks for their shapes
    return table, at/f'{name}.csv'


def own_name(name, path):
    "Name of a video in the list: of the gestures it needs the person, of letterboxed ones another ending"
    if name == 'gestures': return f'{gesture_name(path)[1].replace(" ", "")}_{path.parent.name}_{path.name}'
    return f'{path.stem}.mp4' if name == 'ut_interaction' else path.name


def shapes(paths):
    "Width, height and seconds of each video"
    import av
    def shape(path):
        with av.open(path) as box:
            v = box.streams.video[0]
            return v.codec_context.width, v.codec_context.height, float(v.duration*v.time_base) if v.duration else box.duration/av.time_base
    return np.array([shape(p) for p in paths], float)


def size_only(run, seeds):
    "Predictions of forests that know width, height and length of each original video and nothing else, as a row of a study with folds"
    from sklearn.ensemble import RandomForestClassifier
    from kinetics_dance.clips.folds import read_folds
    from kinetics_dance.clips.table import ClipTable
    from kinetics_dance.training.study_files import study_clips
    folds = read_folds(run)
    if not folds: raise StudyError(f'{run.name}: is not a study with folds, or 00_data has not been run')
    clips = study_clips(run).sort_values('clip_id', ignore_index=True)
    listed = pd.read_csv(project_root()/LISTS/'ut_interaction_originals.csv')
    original = dict(zip(listed.path.map(lambda p: Path(p).name), listed.original))
    url = ClipTable(run/'clips.sqlite').frame().set_index('clip_id').url
    x = shapes([original[Path(url[c]).name] for c in clips.clip_id])
    classes, fold = sorted(clips.label.unique()), clips.group.map(folds['groups']).to_numpy()
    for seed in seeds:
        p = np.zeros((len(clips), len(classes)))
        for k in range(folds['folds']):
            own = fold == k
            forest = RandomForestClassifier(500, min_samples_leaf=2, random_state=seed).fit(x[~own], clips.label[~own])
            p[np.ix_(own, np.searchsorted(classes, forest.classes_))] = forest.predict_proba(x[own])
        table = clips[['clip_id', 'group', 'label']].assign(split='test', fold=fold).join(pd.DataFrame(p, columns=[f'p_{c}' for c in classes]))
        with writing(run/'predictions'/'size_only'/f'seed{seed}.parquet') as part: table.to_parquet(part, index=False)
    return float((np.array(classes)[p.argmax(1)] == clips.label).mean())


TITLES = dict(weizmann='Weizmann, ten actions', weizmann_along='Weizmann, five ways of getting along', ut_interaction='UT-Interaction, six interactions', gestures='Body gestures, fifteen', weizmann_arrow='Weizmann, forwards or backwards')
PAGE, BEGIN, END = ROOT/'nbs'/'pages'/'real_videos.md', '<!-- results -->', '<!-- /results -->'


def publish(run, to):
    "Report, tables and predictions of a study; no figure, because figures show people"
    from kinetics_dance.comparison import compare, write_report
    c = compare(run)
    to.mkdir(parents=True, exist_ok=True)
    if (run/'known.json').exists(): shutil.copyfile(run/'known.json', to/'known.json')
    write_report(c, to, run.name)
    for f in [p for at in ('*', '*/shuffled', '*/reversed') for p in sorted((run/'predictions').glob(f'{at}/seed*.parquet'))]:
        (to/f.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f, to/f.relative_to(run))


def section(study, report):
    "What a study found, as the page shows it"
    from report.results import NAMES, name, span, table
    models = dict(sorted(report['models'].items(), key=lambda m: [*NAMES, m[0]].index(m[0])))
    def plain(text): return re.sub('|'.join(models), lambda m: name(m[0], models), text)
    rows = [(name(m, models), len(x['seeds']), span(x['accuracy']), *(span(x['probes'][k]) if k in x['probes'] else '' for k in ('shuffled', 'reversed'))) for m, x in models.items()]
    said = [f'- {plain(v)}' for v in [*report['verdicts'], *report['notes']]]
    return (f"### {TITLES.get(study, study)}\n\n{report['n_test']} clips of {report['n_uploads']} groups, {len(report['classes'])} classes (chance {1/len(report['classes']):.1%}).\n\n"
            + table(['model', 'training runs', 'right', 'frames shuffled', 'frames backwards'], rows) + '\n\n' + '\n'.join(said) + '\n')


def write_page():
    "Put what is in results/ into the page"
    found = {s: json.loads((ROOT/'results'/s/'report.json').read_text(encoding='utf-8')) for s in TITLES if (ROOT/'results'/s/'report.json').exists()}
    before, _, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
    missing = [f'`{s}`' for s in TITLES if s not in found]
    text = '\n'.join(['## What was found\n', *(section(s, r) for s, r in found.items())]) if found else ''
    if missing: text += f"\nNot run for this page yet: {', '.join(missing)}.\n"
    PAGE.write_text(f'{before}{BEGIN}\n\n{text.strip()}\n\n{END}{rest.partition(END)[2]}', encoding='utf-8')


def main():
    ap = argparse.ArgumentParser(prog='python -m rehearsal.real_video', description=__doc__.split('\n')[0])
    ap.add_argument('what', choices=[*SETS, 'size_only', 'publish'])
    ap.add_argument('of', nargs='+', metavar='FOLDER or STUDY')
    ap.add_argument('--runs', default='runs', help='folder of all runs')
    a = ap.parse_args()
    try:
        if a.what in SETS:
            table, path = make_list(a.what, a.of[0])
            print(f'{path}: {len(table)} videos, {table.label.nunique()} classes, {table.group.nunique()} groups; next: make report STUDY={a.what}')
        elif a.what == 'size_only':
            from kinetics_dance.study.settings import read_settings
            p = read_settings(a.of[0], runs=a.runs)
            print(f'width, height and length alone: {size_only(study_folder(p["study"], p["runs"]), p["seeds"]):.3f}')
        else:
            for s in a.of: publish(study_folder(s, a.runs), ROOT/'results'/s)
            write_page()
    except StudyError as e:
        print(f'error: {e}', file=sys.stderr)
        return 2


if __name__ == '__main__': sys.exit(main())
