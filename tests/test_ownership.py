"What may be deleted: one test for each place that deletes. The rule is in `kinetics_dance.core.ownership`."
import json
import pandas as pd
import pytest
from conftest import ROOT
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError, StudyWarning
from kinetics_dance.core.ownership import KINDS, MARKER, check_ours, claim, remove_ours, sweep
from kinetics_dance.core.storage import as_path


def put(folder, *names):
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(name)
    return folder


def names(folder): return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}


OURS = dict(videos='a.mp4', frames='store.json', packs='index.json', uploads='manifest.json')
THEIRS = dict(videos='.git/objects/x', frames='.hidden', packs='backup.tar', uploads='notes.txt')


@pytest.mark.parametrize('kind', OURS)
def test_a_folder_of_somebody_is_refused(kind, tmp_path):
    put(tmp_path/'x', OURS[kind], THEIRS[kind])
    with pytest.raises(StudyError, match='neither empty nor made by kinetics_dance'): claim(tmp_path/'x', kind)
    assert names(tmp_path/'x') == {OURS[kind], THEIRS[kind]}


@pytest.mark.parametrize('kind', OURS)
def test_folders_of_version_0_1_0_go_on(kind, tmp_path):
    put(tmp_path/'outside', OURS[kind])
    put(tmp_path, 'study/clips.sqlite', f'study/{kind}/{THEIRS[kind]}')
    for folder in (tmp_path/'outside', tmp_path/'study'/kind):
        claim(folder, kind)
        assert (folder/MARKER).is_file()
    sweep(tmp_path/'study'/kind, kind)
    assert THEIRS[kind] in names(tmp_path/'study'/kind)


@pytest.mark.parametrize('kind', ['frames', 'packs'])
def test_names_like_ours_alone_are_not_enough(kind, tmp_path):
    put(tmp_path/'x', 'labels.json' if kind == 'frames' else '0123456789-000000.tar')
    with pytest.raises(StudyError): claim(tmp_path/'x', kind)


def test_a_bucket_follows_the_same_rule():
    bucket = as_path('memory://ownership')
    (bucket/'theirs'/'frames'/'labels.json').write_text('mine')
    with pytest.raises(StudyError, match='neither empty'): claim(bucket/'theirs'/'frames', 'frames')
    claim(bucket/'new', 'packs')
    assert check_ours(bucket/'new', 'packs')
    for name in ('0123456789-000000.tar', 'backup.tar'): (bucket/'new'/name).write_text('x')
    remove_ours(bucket/'new', ['0123456789-000000.tar', 'backup.tar', MARKER], r'[0-9a-f]{10}-\d{6}\.tar')
    assert not (bucket/'new'/'0123456789-000000.tar').exists() and (bucket/'new'/'backup.tar').exists()


def test_without_a_mark_nothing_goes(tmp_path):
    put(tmp_path/'x', '.part-abcdefgh/a', '.a.12.mp4')
    sweep(tmp_path/'x', 'videos')
    assert len(names(tmp_path/'x')) == 2
    claim(tmp_path/'x', 'videos')
    put(tmp_path/'x', '.thumbs/t', '.note')
    sweep(tmp_path/'x', 'videos')
    assert names(tmp_path/'x') == {MARKER, '.thumbs/t', '.note'}


def test_a_download_refuses_the_videos_of_somebody(tmp_path):
    from kinetics_dance.download.downloader import download
    put(tmp_path/'data', 'videos/.git/x', 'videos/film.mov')
    with pytest.raises(StudyError, match='neither empty'): download(ClipTable(tmp_path/'s'/'clips.sqlite'), tmp_path/'s', storage=tmp_path/'data')
    assert names(tmp_path/'data') == {'videos/.git/x', 'videos/film.mov'}


def test_a_store_made_anew_keeps_what_is_not_a_note(tmp_path):
    from kinetics_dance.loading.store import _open_store
    folder, note = tmp_path/'frames', dict(clip_id='a', params={}, source={}, array={})
    _open_store(folder, dict(n_frames=8), print)
    put(folder, 'labels.json', 'labels.npy', '.hidden', '.ipynb_checkpoints/x', 'a.npy', '.a.77.npy')
    (folder/'a.json').write_text(json.dumps(note))
    _open_store(folder, dict(n_frames=9), lambda line: None)
    assert names(folder) == {MARKER, 'store.json', 'labels.json', 'labels.npy', '.hidden', '.ipynb_checkpoints/x'}


def test_uploads_of_the_demo(tmp_path):
    from kinetics_dance.synthetic.uploads import make_uploads
    put(tmp_path/'mine', 'thesis.tex')
    with pytest.raises(StudyError): make_uploads(tmp_path/'mine', [])
    put(claim(tmp_path/'up', 'uploads'), 'old.mp4', 'notes.txt')
    make_uploads(tmp_path/'up', [], 1)
    assert names(tmp_path/'up') == {MARKER, 'manifest.json', 'notes.txt'}


def test_models_that_a_study_no_longer_has(tmp_path):
    from kinetics_dance.training.runs import forget_models
    put(tmp_path, 'models/old/seed0/config.json', 'models/old/lr.json', 'models/old/seed0.lock', 'models/old/notes.md', 'models/.git/config',
        'models/mine/weights.bin', 'models/keep/seed0/config.json', 'predictions/old/seed0.parquet', 'predictions/old/reversed/seed0.parquet', 'predictions/old/mine.csv')
    with pytest.warns(StudyWarning, match='left over'): forget_models(tmp_path, ['keep'])
    assert names(tmp_path) == {'models/old/notes.md', 'models/.git/config', 'models/mine/weights.bin', 'models/keep/seed0/config.json', 'predictions/old/mine.csv',
                               # what was trained is set aside
                               'models/old/left_over.seed0/config.json', 'models/old/lr.json', 'models/old/seed0.lock',
                               'predictions/old/left_over.seed0.parquet', 'predictions/old/reversed/left_over.seed0.parquet'}


def test_exported_frames_go_over_exported_frames_only(tmp_path):
    import numpy as np
    from kinetics_dance.frames import export_frames
    class Store(dict): packed = False
    clips = pd.DataFrame([dict(clip_id='a', label='tango', split='train')])
    store, at = Store(a=np.zeros((2, 16, 16, 3), np.uint8)), tmp_path/'train'/'tango'/'a'
    for _ in range(2): assert export_frames(store, clips, tmp_path) == 2
    put(at, 'mine.txt')
    with pytest.raises(StudyError, match='mine.txt'): export_frames(store, clips, tmp_path)
    assert names(at) == {'00000.jpg', '00001.jpg', 'mine.txt'}


def test_event_files(tmp_path):
    pytest.importorskip('tensorboard')
    from kinetics_dance.training.tracking import make_tracker
    at = put(tmp_path/'tensorboard'/'m'/'seed0', 'events.out.tfevents.1.x', 'notes.txt')
    t = make_tracker('tensorboard', tmp_path, 'm', 0, dict(lr=1.))
    t._begin([])
    t.writer.close()
    assert 'notes.txt' in names(at) and 'events.out.tfevents.1.x' not in names(at)


def test_a_site_replaces_only_a_site(tmp_path):
    from report.common import UserError
    from report.site import check_site
    check_site(tmp_path/'none')
    put(tmp_path/'old', '_static/a.css', '_sources/a.txt', 'searchindex.js', '.buildinfo')
    (tmp_path/'old'/'index.html').write_text('<link href="_static/a.css">')
    (tmp_path/'old'/'.stamp').write_text('0'*16)
    check_site(tmp_path/'old')
    site = put(tmp_path/'new', 'index.html')
    (site/MARKER).write_text('index.html')
    check_site(site)
    for folder, name in ((site, 'CNAME'), (tmp_path/'old', 'thesis.tex'), (tmp_path/'public_html', 'index.html')):
        put(folder, name)
        with pytest.raises(UserError, match=name): check_site(folder)
        assert (folder/name).exists()


def test_every_place_that_deletes_is_known():
    "A new unlink or rmtree has to be looked at, and to be put here"
    import re
    known = {'clips/folds': 1, 'comparison': 1, 'core/base': 1, 'core/cluster': 1, 'core/ownership': 2, 'core/storage': 1, 'data': 1, 'deploy/hub': 2, 'deploy/output': 1, 'download/cvdf': 3,
             'download/downloader': 2, 'download/scheduler': 1, 'evaluation/fold_predictions': 1, 'frames': 1, 'inference': 1, 'loading/bodies': 2, 'loading/store': 4, 'models/config': 1, 'synthetic/uploads': 1,
             'training/runs': 6, 'training/tracking': 1}
    found = {}
    for f in sorted((ROOT/'kinetics_dance').rglob('*.py')):
        if n := sum(len(re.findall(r'\.unlink\(|rmtree\(|os\.remove\(', line)) for line in f.read_text(encoding='utf-8').splitlines()): found[f.relative_to(ROOT/'kinetics_dance').with_suffix('').as_posix()] = n
    more = {k: n for k, n in found.items() if n > known.get(k, 0)}
    assert len(found) > 10, 'the library lies elsewhere'
    assert not more, f'places that delete, not known to this test: {more}'
