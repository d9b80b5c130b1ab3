"""Lists, folders of classes, labels, names and studies as people have them: the right table, or one line that says what is wrong.
The names of the first tests are those of cases from public issue trackers; the others are their relatives."""
import contextlib, io, json, os, shutil, subprocess, sys, unicodedata, warnings
from pathlib import Path
import pandas as pd, pytest
from hypothesis import HealthCheck, given, settings as limits, strategies as st
from conftest import ROOT
from kinetics_dance.clips.annotations import clip_id, clip_ids, read_annotations, read_folder, walk_videos
from kinetics_dance.clips.splits import assign_splits, list_clips, split
from kinetics_dance.clips.table import ClipTable, read_export
from kinetics_dance.core.base import StudyError, StudyWarning, project_root
from test_attacks import cli, study
from test_loading_faults import noise  # noqa: F401 (a fixture)

HEAD = 'label,youtube_id,time_start,time_end,split\n'
ROW = 'tap dancing,aaaaaaaaaaa,0,10,train\n'


def file(path, text=None):
    "A file of its own content, long enough to be taken for a video"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(text or str(path))*40)
    return path


def folder(tmp_path, *names):
    for n in names: file(tmp_path/'videos'/n)
    return tmp_path/'videos'


def listed(tmp_path, text, encoding='utf-8'):
    (tmp_path/'list.csv').write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_folder(tmp_path/'videos', csv=tmp_path/'list.csv')


def kinetics(tmp_path, text):
    (tmp_path/'k.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(tmp_path/'k.csv')


def told(f):
    "(result, what was warned of)"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        out = f()
    return out, ' | '.join(str(x.message) for x in w if issubclass(x.category, StudyWarning))


def wrong(f):
    "The one line of an error"
    with warnings.catch_warnings(), pytest.raises(StudyError) as e:
        warnings.simplefilter('ignore')
        f()
    assert '\n' not in str(e.value)
    return str(e.value)


# --- the handed cases

def test_class_named_None(tmp_path):
    from kinetics_dance.evaluation.predictions import read_predictions
    names = ['None', 'NA', 'nan', 'null', 'NaN', '', 'N/A', '#N/A', '-1.#IND', '<NA>', 'TRUE', '1e5']
    videos = folder(tmp_path, *(f'{n}/{k}.mp4' for n in names if n and '/' not in n for k in range(2)))
    assert set(read_folder(videos).label) == {n for n in names if n and '/' not in n}
    (tmp_path/'p.csv').write_text('clip_id,label,p_None,p_NA,p_001\nc1,None,.6,.3,.1\nc2,001,.1,.2,.7\nNA,NA,.1,.8,.1\n')
    assert read_predictions(tmp_path/'p.csv').label.tolist() == ['NA', 'None', '001']
    (tmp_path/'p.csv').write_text('clip_id,label,p_None,p_NA\nc1,,.6,.4\n')
    assert "column 'label' has an empty cell" in wrong(lambda: read_predictions(tmp_path/'p.csv'))
    (tmp_path/'p.csv').write_text('clip_id,label,p_None,p_NA\nc1,NA,.6,\n')
    assert 'p_NA' in wrong(lambda: read_predictions(tmp_path/'p.csv'))


@pytest.mark.parametrize('labels', [('001', '002'), ('1', '01'), ('None', 'NA'), ('=1+1', '-1'), ('1.0', '1e3'), ('True', 'nan')])
def test_class_names_that_are_numbers(tmp_path, labels):
    "clips.csv is read again with the labels that were written, by the gallery, too"
    from report.gallery import pick
    table = ClipTable(tmp_path/'clips.sqlite')
    rows = [dict(label=l, youtube_id=f'u{k}', group='NA', time_start=0., time_end=3., split='test', source='folder') for k, l in enumerate(labels)]
    table.set(pd.DataFrame(rows))
    table.update([dict(clip_id=f'u{k}_000000_000003', status='ok', path=f'{k}.mp4') for k in range(2)])
    for k in range(2): (tmp_path/f'{k}.mp4').touch()
    table.export(tmp_path/'clips.csv')
    df = read_export(tmp_path/'clips.csv')
    assert df.label.tolist() == list(labels) and df.group.tolist() == ['NA']*2 and df.time_end.tolist() == [3., 3.] and df.reason.isna().all()
    assert {r['label'] for _, rows in pick(tmp_path) for r in rows} == set(labels)


def test_class_name_of_210_letters(tmp_path):
    from kinetics_dance.clips.annotations import check_classes
    videos = folder(tmp_path, *(f'{c*210}/{k}.mp4' for c in 'ab' for k in range(3)))
    check_classes(sorted(read_folder(videos).label.unique()))


@pytest.mark.parametrize('few', [3, 4, 5, 6, 7, 8, 9, 13, 14])
@pytest.mark.parametrize('beside', [3, 20])
def test_class_of_eight_beside_twenty(tmp_path, few, beside):
    df = read_folder(folder(tmp_path, *(f'a/{k}.mp4' for k in range(few)), *(f'b/{k}.mp4' for k in range(beside))))
    for seed in range(4):
        clips, gone = assign_splits(df, n_valid=5, seed=seed)
        assert not len(gone) and (clips.groupby(['label', 'split']).size().unstack(fill_value=0) > 0).all(axis=None)


def test_a_split_without_a_valid_side_keeps_some_for_training(tmp_path):
    "Five training clips and n_valid: 6 left none"
    df = pd.DataFrame([dict(label=l, youtube_id=f'{l}{k}', time_start=0., time_end=1., split='test' if k > 4 else 'train') for l in 'ab' for k in range(7)])
    clips, _ = assign_splits(df, n_valid=6)
    assert (clips.groupby(['label', 'split']).size().unstack() >= 2).all(axis=None)


@pytest.mark.parametrize('head', ['path,label,Group,Split', 'PATH,Label,GROUP,SUBSET', ' path , class ,person, set', 'filename,class_name,subject_id,partition', 'Video Path,Category,group-id,Split'])
def test_column_names_with_capitals(tmp_path, head):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    df = listed(tmp_path, f'{head}\na/0.mp4,x,ann,Train\na/1.mp4,x,bob,TEST\n')
    assert df.group.tolist() == ['ann', 'bob'] and df.split.tolist() == ['train', 'test']


def test_columns_that_nobody_knows_are_named(tmp_path):
    folder(tmp_path, 'a/0.mp4')
    _, said = told(lambda: listed(tmp_path, 'path,label,Splt,camera\na/0.mp4,x,train,2\n'))
    assert 'not read, because no such column is known: Splt, camera' in said and 'group' in said
    assert 'both mean label' in wrong(lambda: listed(tmp_path, 'path,class,category\na/0.mp4,x,y\n'))
    assert listed(tmp_path, 'path,label,class\na/0.mp4,x,y\n').label.tolist() == ['x']      # the exact name is meant
    df, said = told(lambda: kinetics(tmp_path, 'Label,Video ID,Start,END,Subset,fps\nx,aaaaaaaaaaa,1,2,val,25\n'))
    assert df.time_end.tolist() == [2.] and 'fps' in said


def test_times_in_a_list_of_files(tmp_path):
    "They were ignored: each row was the whole file"
    folder(tmp_path, 'a/0.mp4')
    df = listed(tmp_path, 'path,label,start,end\na/0.mp4,x,0,2.5\na/0.mp4,y,2.5,\n')
    assert df[['time_start', 'time_end']].values.tolist() == [[0, 2.5], [2.5, 0]] and df.group.nunique() == 1
    assert len(set(clip_ids(df))) == 2
    for row, says in (('a/0.mp4,x,3,2', 'line 2: time_end is not after time_start'), ('a/0.mp4,x,0:03,', 'line 2: time_start is not a time'), ('a/0.mp4,x,0,inf', 'line 2: time_end is not a time')):
        assert says in wrong(lambda: listed(tmp_path, f'path,label,start,end\n{row}\n'))


def test_file_name_that_is_not_utf8(tmp_path):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    file(tmp_path/'videos/a'/os.fsdecode(b'caf\xe9.mp4'), 'other')
    df, said = told(lambda: read_folder(tmp_path/'videos'))
    assert len(df) == 2 and r"'caf\xe9.mp4': its name is not UTF-8" in said.replace('\\udce9', r'\xe9')
    said.encode()


@pytest.mark.parametrize('line, says', [('folder: 2024', "folder: expected text or null, got a whole number 2024: write it in quotes, '2024'"), ('folder: yes', "write it in quotes, 'yes'"),
                                        ('classes: [001, 002]', "in the list, expected text, got a whole number 1: write it in quotes"), ('contains: 7', "write it in quotes, '7'"),
                                        ('classes: [no, on]', "write it in quotes, 'no'"), ('annotations: [1]', 'write it in quotes'), ('runs: 1.5', "write it in quotes, '1.5'")])
def test_folder_that_is_a_number(tmp_path, line, says):
    from kinetics_dance.study.settings import file_settings
    (tmp_path/'s.yaml').write_text(f'source: folder\n{line}\n')
    assert says in wrong(lambda: file_settings(tmp_path/'s.yaml'))


def test_foreign_settings_ini(tmp_path, monkeypatch):
    "Another nbdev project: paths start where one is; in a folder with studies of ours they start there"
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nrepo = theirs\nlib_name = theirs\n')
    (tmp_path/'nbs').mkdir()
    monkeypatch.chdir(tmp_path/'nbs')
    assert project_root() == tmp_path/'nbs'
    (tmp_path/'studies').mkdir()
    assert project_root() == tmp_path
    (tmp_path/'studies').rmdir()
    for text in ('[DEFAULT]\n', 'lib_name=kinetics_dance', '', 'lib_name'):
        (tmp_path/'settings.ini').write_text(text)
        assert project_root() == tmp_path
    (tmp_path/'settings.ini').write_bytes(b'\xff\xfelib_name = x')
    project_root()


@pytest.mark.parametrize('ending', [',', ',,,', ' , ', ''])
def test_kinetics_list_with_trailing_commas(tmp_path, ending):
    for head in (HEAD, HEAD.strip() + ',\n'):
        assert kinetics(tmp_path, head + ROW.strip() + ending + '\n').split.tolist() == ['train']


def test_line_numbers_and_links(tmp_path):
    folder(tmp_path, 'a/0.mp4', 'b/1.mp4')
    says = 'line 6: no/such.mp4 does not exist'
    assert says in wrong(lambda: listed(tmp_path, 'path,label\n\n\na/0.mp4,a\n\nno/such.mp4,b\n'))
    assert 'line 8: no/such' in wrong(lambda: listed(tmp_path, '\n\npath,label\n\n\na/0.mp4,a\n,\nno/such.mp4,b\n'))
    assert says in wrong(lambda: listed(tmp_path, '\ufeffpath,label\r\n\r\n\r\na/0.mp4,a\r\n\r\nno/such.mp4,b\r\n'))
    assert says in wrong(lambda: listed(tmp_path, 'path,label\r\r\ra/0.mp4,a\r\rno/such.mp4,b\r'))
    assert 'line 5: time_start' in wrong(lambda: kinetics(tmp_path, HEAD + '\n' + ROW + '\nx,aaaaaaaaaaa,?,1,train\n'))
    assert 'line 2: ' in wrong(lambda: listed(tmp_path, 'path,label\n"a/0.mp4","a\nno.mp4,b\n'))
    (tmp_path/'videos/a/gone.mp4').symlink_to('/nowhere')
    (tmp_path/'videos/a/frames.mp4').mkdir()
    df, said = told(lambda: read_folder(tmp_path/'videos'))
    assert len(df) == 2 and "'gone.mp4': a link that leads nowhere" in said and "'frames.mp4': not a file but a folder" in said


def test_linked_folders(tmp_path):
    videos = folder(tmp_path, 'squat/0.mp4', 'jump/0.mp4')
    for k in range(3): file(tmp_path/f'nas/deep/{k}.mp4')
    (videos/'squat/session2').symlink_to(tmp_path/'nas')
    (videos/'squat/again').symlink_to('session2')
    (tmp_path/'nas/round').symlink_to(tmp_path/'nas')
    (tmp_path/'nas/up').symlink_to(videos)
    df, said = told(lambda: read_folder(videos))
    assert df.label.tolist().count('squat') == 4 and len(df) == 5 and said.count('a link to a folder that is read already') >= 2
    from kinetics_dance.deploy.request import find_videos
    found, _ = told(lambda: find_videos([videos]))
    assert len({os.path.realpath(f) for f in found}) == len(found) == 5


@pytest.mark.parametrize('text, says', [('path,label\na/0.mp4,salsa, slow\n', 'line 2 has 3 fields, the head 2'), ('path,label\na/0.mp4,a,ann\n', 'line 2 has 3 fields, the head 2'),
                                        ('path,label\na/0.mp4,a,,x\n', 'line 2 has 4 fields, the head 2'), ('path,label,\na/0.mp4,a,x\n', 'line 2 has 3 fields, the head 2'),
                                        ('path,label\na/0.mp4,a\n\na/1.mp4,a,1,2,3,4,5\n', 'line 4 has 7 fields, the head 2')])
def test_list_with_one_field_too_many(tmp_path, text, says):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    said = wrong(lambda: listed(tmp_path, text))
    assert says in said and 'in quotes' in said
    assert listed(tmp_path, 'path,label\na/0.mp4,a,\n').label.tolist() == ['a']
    assert listed(tmp_path, 'path,label\na/0.mp4,"salsa, slow"\n').label.tolist() == ['salsa, slow']


@pytest.mark.parametrize('text', ['', '\n\n', HEAD, HEAD + '\n\n', '\ufeff' + HEAD, HEAD + ',,,,\n'])
def test_list_without_rows(tmp_path, text):
    said = wrong(lambda: kinetics(tmp_path, text))
    assert 'no rows' in said or 'is empty' in said
    (tmp_path/'videos').mkdir()
    said = wrong(lambda: listed(tmp_path, text.replace(HEAD.strip(), 'path,label').replace(',,,,', ',')))
    assert 'no rows' in said or 'is empty' in said


def test_same_file_by_two_spellings(tmp_path):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    os.link(tmp_path/'videos/a/0.mp4', tmp_path/'videos/a/hard.mp4')
    (tmp_path/'videos/a/soft.mp4').symlink_to('0.mp4')
    for other in ('./a/0.mp4', 'a//0.mp4', 'a/../a/0.mp4', str(tmp_path/'videos/a/0.mp4'), 'a/hard.mp4', 'a/soft.mp4', r'a\0.mp4'):
        said = wrong(lambda: listed(tmp_path, f'path,label,split\na/0.mp4,a,train\na/1.mp4,a,train\n{other},a,test\n'))
        assert 'line 4' in said and 'is listed twice, also in line 2' in said, other


def test_copies_are_never_on_two_sides(tmp_path):
    "By content: one stays, the one in the test list; with two labels none does"
    videos = folder(tmp_path, *(f'a/{k}.mp4' for k in range(4)), *(f'b/{k}.mp4' for k in range(4)))
    shutil.copy(videos/'a/0.mp4', videos/'a/copy.mp4')
    shutil.copy(videos/'a/1.mp4', videos/'b/torn.mp4')
    df, said = told(lambda: read_folder(videos))
    assert len(df) == 7 and "'copy.mp4': the same video as a/0.mp4" in said and said.count('with another label') + said.count('another label elsewhere') == 2
    df, said = told(lambda: listed(tmp_path, 'path,label,split\na/0.mp4,a,train\na/copy.mp4,a,test\na/2.mp4,a,train\n'))
    assert [Path(p).name for p in df.path] == ['copy.mp4', '2.mp4'] and '0.mp4' in said
    df, said = told(lambda: listed(tmp_path, 'path,label,start,end\na/0.mp4,a,0,1\na/copy.mp4,a,2,3\n'))
    assert len(df) == 2 and df.group.nunique() == 1 and not said


def test_segments_within_a_second(tmp_path):
    df = kinetics(tmp_path, HEAD + 'tap dancing,zzzzzzzzzzz,3.2,3.8,train\ntap dancing,zzzzzzzzzzz,3.85,3.95,train\ntap dancing,zzzzzzzzzzz,3.0,13.0,train\ntap dancing,zzzzzzzzzzz,3.5,13.5,train\n')
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(df.assign(source='youtube'))
    assert table.frame().clip_id.tolist() == ['zzzzzzzzzzz_000003-2_000003-8', 'zzzzzzzzzzz_000003-5_000013-5', 'zzzzzzzzzzz_000003-85_000003-95', 'zzzzzzzzzzz_000003_000013']
    from kinetics_dance.download.downloader import _uploads
    assert len(_uploads(table.frame().to_dict('records'), None)[0][1]) == 4


def test_keys_of_an_earlier_version_stay(tmp_path, monkeypatch):
    from kinetics_dance.clips import table as module
    df = pd.DataFrame([dict(label='a', youtube_id='zzzzzzzzzzz', time_start=3.5, time_end=13.5, split='train', source='youtube')])
    table = ClipTable(tmp_path/'clips.sqlite')
    with monkeypatch.context() as m:
        m.setattr(module, 'clip_ids', lambda clips: clip_ids(clips, whole=True))
        table.set(df)
    table.update([dict(clip_id='zzzzzzzzzzz_000003_000013', status='ok', path='videos/zzzzzzzzzzz_000003_000013.mp4')])
    table.set(pd.concat([df, df.assign(time_start=3., time_end=13.2)]))
    got = table.frame().set_index('clip_id')
    assert got.status.to_dict() == {'zzzzzzzzzzz_000003_000013': 'ok', 'zzzzzzzzzzz_000003_000013-2': 'pending'}
    from kinetics_dance.clips.splits import wanted
    line = pd.concat([df, df.assign(youtube_id='yyyyyyyyyyy')]).assign(place=[0, 1])
    assert wanted(line, 1, 1, 0, gone={'zzzzzzzzzzz_000003_000013'}).youtube_id.tolist() == ['yyyyyyyyyyy', 'zzzzzzzzzzz']


def test_study_file_in_cp1252(tmp_path):
    from kinetics_dance.study.settings import file_settings
    (tmp_path/'latin.yaml').write_bytes('source: folder\nfolder: café\n'.encode('cp1252'))
    assert 'latin.yaml: not valid YAML' in wrong(lambda: file_settings(tmp_path/'latin.yaml'))


@pytest.mark.parametrize('text, says', [('study: num\nsource: folder\n', "study is 'num', but the file is named 'mine'"), ('source: folder\nn_tran: 2\n', "unknown key 'n_tran' (did you mean 'n_train'"),
                                        ('n_train: 0\nn_train: 3\n', "key 'n_train' is given twice")])
def test_study_key_and_typos_by_the_command(tmp_path, text, says):
    (tmp_path/'mine.yaml').write_text(text)
    for command in ('download', 'frames', 'train', 'status'): assert says in cli(tmp_path, command, '--study', 'mine.yaml', rc=2)


@pytest.mark.parametrize('sides', [('train', 'val', 'test'), ('train', 'valid', 'test'), ('Training', 'Validation', 'Testing'), ('train', 'test'), ('TRAIN', 'dev', 'TEST')])
def test_train_val_test_folders(tmp_path, sides):
    videos = folder(tmp_path, *(f'{s}/{c}/{k}.mp4' for s in sides for c in ('walk', 'run') for k in range(3)))
    df, said = told(lambda: read_folder(videos))
    assert set(df.label) == {'walk', 'run'} and df.groupby('split').size().to_dict() == {k: 6 for k in ('train', 'valid', 'test')[:3] if k != 'valid' or len(sides) > 2}
    assert 'taken as the split' in said


def test_train_is_a_vehicle(tmp_path):
    df, said = told(lambda: read_folder(folder(tmp_path, 'train/0.mp4', 'bus/0.mp4', 'car/0.mp4')))
    assert set(df.label) == {'train', 'bus', 'car'} and not said
    df, said = told(lambda: read_folder(folder(tmp_path/'2', 'train/a/0.mp4', 'test/a/0.mp4', 'more/a/0.mp4')))
    assert set(df.label) == {'train', 'test', 'more'} and 'taken as classes' in said


def test_url_and_leading_dash(tmp_path):
    said = cli(tmp_path, 'predict', 'https://www.youtube.com/watch?v=aaaaaaaaaaa', rc=2)
    assert 'is an address, not a file' in said and 'yt-dlp' in said
    said = cli(tmp_path, 'predict', '-0IErS_cisg_000017_000027.mp4', rc=2)
    assert 'written ./-0IErS_cisg_000017_000027.mp4' in said
    assert 'written ./-0IErS.mp4' in cli(tmp_path, '--videopath', '-0IErS.mp4', rc=2)
    file(tmp_path/'-0IErS.mp4')
    assert 'No such option' not in cli(tmp_path, 'predict', '-0IErS.mp4', '--model-path', 'none', rc=2)
    folder(tmp_path, 'a/0.mp4')
    assert 'is an address, not a file' in wrong(lambda: listed(tmp_path, 'path,label\nhttps://x.org/a.mp4,a\n'))
    assert 'folder: https://x.org/videos is an address' in wrong(lambda: list_clips('folder', [], 'https://x.org/videos'))


def test_long_file_names(tmp_path):
    from kinetics_dance.deploy.output import plan_targets
    asked = dict(cut=True, over_time=True, picture=None, save_video=None, overwrite=False)
    for name in ('跳'*80 + '.mp4', 'a'*250 + '.mp4', 'a'*238 + '.mp4'):
        f = file(tmp_path/name)
        said = wrong(lambda: plan_targets([str(f)], asked, False))
        assert 'too long' in said


def test_outputs_of_files_of_one_name(tmp_path):
    "Two hundred odd names: each output has its own, and none goes over a file that is there"
    from kinetics_dance.deploy.output import plan_targets
    odd = ['0001', 'C++', 'C#', 'c#', '跳舞', '走路', 'é', 'e\u0301', 'a b', 'a  b', 'a_cut', 'a', 'A', '.a', '-a', '--out', 'x.y', 'x', '%41', 'A%', '$HOME', "it's", '"q"', 'tab\t', 'ﬁ', 'fi', 'ß', 'ss', 'SS', 'İ', 'i',
           '\u202egnp', 'a.', 'a..', ' a', 'a ', '~', 'CON', 'nul', '🕺\u200d💃']
    names = [f'{d}/{o}.{e}' for d in ('monday', 'tuesday') for o in odd for e in ('mp4', 'mov', 'MP4')][:230]
    files = [str(file(tmp_path/'in'/n)) for n in names]
    assert len(files) >= 200
    asked = dict(cut=True, over_time=True, picture=None, save_video=str(tmp_path/'films'), save_frames_path=str(tmp_path/'frames'), rm_frames=False, overwrite=False)
    plan = plan_targets(files, asked, True)
    paths = [str(p) for to, frames in plan.values() for p in [*to.values(), frames]]
    keys = {unicodedata.normalize('NFC', os.path.abspath(p)).casefold() for p in paths}
    assert len(keys) == len(paths) == 4*len(files) and not keys & {unicodedata.normalize('NFC', f).casefold() for f in files}
    there = Path(paths[5])
    there.parent.mkdir(parents=True, exist_ok=True)
    there.touch()
    assert 'overwrite' in wrong(lambda: plan_targets(files, asked, True))


# --- labels and names: relatives

@pytest.mark.parametrize('labels', [('Tango', 'tango'), ('café', 'cafe\u0301s'[:-1]), ('ﬁne', 'fine'), ('a b', 'a  b'), ('straße', 'STRASSE'), ('Ａ', 'A'), ('a\xa0b', 'a b')])
def test_labels_that_look_alike_are_named(tmp_path, labels):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    df, said = told(lambda: listed(tmp_path, f'path,label\na/0.mp4,{labels[0]}\na/1.mp4,{labels[1]}\n'))
    if unicodedata.normalize('NFC', labels[0]) == unicodedata.normalize('NFC', labels[1]): assert df.label.nunique() == 1 and not said
    else: assert df.label.nunique() == 2 and repr(labels[0]) in said and repr(labels[1]) in said


@pytest.mark.parametrize('label', ['  tango ', 'tango\u3000', '\ttango', '"tango "', '\xa0tango'])
def test_space_around_a_label(tmp_path, label):
    folder(tmp_path, 'a/0.mp4')
    assert listed(tmp_path, f'path,label\na/0.mp4,{label}\n').label.tolist() == ['tango']
    assert kinetics(tmp_path, HEAD + ROW.replace('tap dancing', label)).label.tolist() == ['tango']


@pytest.mark.parametrize('on_disk, in_list', [('caf\u00e9/0.mp4', 'cafe\u0301/0.mp4'), ('cafe\u0301/0.mp4', 'caf\u00e9/0.mp4'), ('a/\uac00.mp4', 'a/\u1100\u1161.mp4'), ('a/b/0.mp4', r'a\b\0.mp4')])
def test_names_that_another_machine_wrote(tmp_path, on_disk, in_list):
    folder(tmp_path, on_disk)
    df = listed(tmp_path, f'path,label\n{in_list},x\n')
    assert len(df) == 1 and os.path.exists(df.path[0])


@pytest.mark.parametrize('comma', [';', '\t'])
def test_lists_of_a_spreadsheet(tmp_path, comma):
    folder(tmp_path, 'a/0.mp4')
    assert listed(tmp_path, f'path{comma}label\na/0.mp4{comma}"a, b"\n').label.tolist() == ['a, b']
    assert kinetics(tmp_path, (HEAD + ROW).replace(',', comma)).label.tolist() == ['tap dancing']


@pytest.mark.parametrize('data, says', [('path,label\ncaf\xe9.mp4,x\n'.encode('cp1252'), 'line 2: byte 0xe9 is not UTF-8'), ('path,label\n'.encode('utf-16'), 'it is UTF-16'),
                                        (b'path,label\na/0.mp4,"x\n', 'line 2: '), (b'path,label\na/0.mp4,"x"y\n', 'line 2: '), (b'\x89PNG\r\n\x1a\n', 'not UTF-8'), (b'a/0.mp4,x\n', 'no column path'),
                                        (b'path\na/0.mp4\n', 'no column label'), (b'path,label\n,x\n', 'line 2: path or label is empty'), (b'path,label\na/0.mp4,\n', 'line 2: path or label is empty'),
                                        (b'path,label,split\na/0.mp4,x,tran\n', 'line 2: split is none of'), (b'path,label\na/\0.mp4,x\n', 'line 2'), (b'path,label\n' + b'a'*5000 + b',x\n', 'line 2: '),
                                        (b'path,label\na,x\n', 'line 2: a: not a file but a folder')])
def test_what_is_wrong_with_a_list_of_files(tmp_path, data, says):
    folder(tmp_path, 'a/0.mp4')
    said = wrong(lambda: listed(tmp_path, data))
    assert says in said and len(said) < 800


def test_lists_of_files_in_json(tmp_path):
    folder(tmp_path, 'a/0.mp4', 'a/1.mp4')
    at = tmp_path/'list.json'
    at.write_text(json.dumps([dict(path='a/0.mp4', label=1), dict(path='a/1.mp4', label='x', group=None)]))
    assert read_folder(tmp_path/'videos', csv=at).label.tolist() == ['1', 'x']
    for text in ('{}', '[]', '[1]', '[{"path": ["a"]}]', '[{"path": 1.5, "label": "x"}]', '{"a": 1', '['*100_000, '[{}]', '[{"path": true, "label": {}}]'):
        at.write_text(text)
        assert 'list.json' in wrong(lambda: read_folder(tmp_path/'videos', csv=at))


def test_what_a_folder_study_leaves_out_is_told(tmp_path):
    videos = folder(tmp_path, 'a/0.mp4', 'a/._0.mp4', 'a/.hidden/1.mp4', 'a/notes.txt', 'a/cover.jpg', '_extra/0.mp4', '__MACOSX/a/._0.mp4', '.git/x.mp4', 'loose.mp4', 'a/.DS_Store')
    df, said = told(lambda: read_folder(videos))
    assert sorted(df.label) == ['_extra', 'a']
    for part in ("'._0.mp4': its name begins with a dot", "2 files whose ending is none of a video's: .jpg, .txt", "'__MACOSX': belongs to the system", "'loose.mp4': lies beside the classes"): assert part in said, said
    study(tmp_path)
    err = io.StringIO()
    from kinetics_dance.study.cli import main
    with contextlib.chdir(tmp_path), contextlib.redirect_stderr(err), warnings.catch_warnings(), pytest.raises(SystemExit): main(['download', '--study', 'mine'])
    assert err.getvalue().count('warning: left out of the folder') == 1


def test_a_folder_that_cannot_be_read(tmp_path):
    if os.geteuid() == 0: pytest.skip('root reads everything')
    videos = folder(tmp_path, 'a/0.mp4', 'b/0.mp4')
    (videos/'b').chmod(0)
    try: df, said = told(lambda: read_folder(videos))
    finally: (videos/'b').chmod(0o755)
    assert len(df) == 1 and 'cannot be read' in said


@pytest.mark.parametrize('name', ['@eaDir', '#recycle', '__MACOSX', 'lost+found', '$RECYCLE.BIN'])
def test_what_systems_put_between_files(tmp_path, name):
    df, said = told(lambda: read_folder(folder(tmp_path, 'a/0.mp4', 'b/0.mp4', f'{name}/0.mp4/SYNOVIDEO.mp4', f'a/{name}/x.mp4')))
    assert sorted(df.label) == ['a', 'b'] and f'{name!r}: belongs to the system' in said


def test_small_words(tmp_path, monkeypatch):
    "A folder has no lines, capitals count and this is said, ~ is the user's folder, one spelling of an accent is as good as the other, a folder is no list"
    from kinetics_dance.clips.annotations import select_classes
    assert "'a\\nb/0.mp4': the label holds a control character" in wrong(lambda: read_folder(folder(tmp_path, 'a\nb/0.mp4')))
    shutil.rmtree(tmp_path/'videos')
    df = read_folder(folder(tmp_path, 'caf\u00e9/0.mp4', 'Salsa/0.mp4'))
    assert len(select_classes(df, '', ['cafe\u0301'])) == len(select_classes(df, 'fe\u0301')) == 1
    assert "capitals count: 'Salsa' is one" in wrong(lambda: select_classes(df, 'salsa'))
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(list_clips('folder', [], '~/videos', '')) == 2
    assert 'it is a folder, not a list' in wrong(lambda: read_annotations(tmp_path/'videos'))
    _, said = told(lambda: read_folder(folder(tmp_path/'2', 'test/0.mp4', 'train/0.mp4')))
    assert 'do not all hold folders of classes' in said


# --- properties

SMALL = limits(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
cells = st.text(st.characters(codec='utf-8'), max_size=12) | st.sampled_from(['a/0.mp4', './a/0.mp4', 'a/1.mp4', 'train', 'NA', '0', '1e400', '3.5', 'x"y', '"', ',', ';', 'a\\0.mp4', '\ufeff', 'b', '..', '/', 'a'])
heads = st.sampled_from(['path,label', 'path;label', 'Path,Class,Split', 'path,label,group,split,start,end', 'label,youtube_id,time_start,time_end,split', 'path\tlabel', 'path,label,'])
rows = st.lists(st.lists(cells, max_size=7), max_size=6)
lists = st.binary(max_size=200) | st.builds(lambda h, r, e: '\n'.join([h, *(','.join(x) for x in r)]).encode(e, 'replace'), heads, rows, st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'cp1252']))
things = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | cells, lambda x: st.lists(x, max_size=3) | st.dictionaries(
    st.sampled_from(['path', 'label', 'annotations', 'segment', 'subset', 'split', 'a']), x, max_size=4), max_leaves=12).map(lambda x: json.dumps(x).encode())


@SMALL
@given(lists | things, st.sampled_from(['csv', 'json']))
def test_any_list_is_a_table_or_one_line(tmp_path_factory, data, ending):
    at = tmp_path_factory.getbasetemp()/'property'
    for k in range(2): file(at/f'videos/a/{k}.mp4') if not (at/f'videos/a/{k}.mp4').exists() else None
    (at/f'l.{ending}').write_bytes(data)
    for read in (lambda: read_folder(at/'videos', csv=at/f'l.{ending}'), lambda: read_annotations(at/f'l.{ending}')):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: df = read()
            except StudyError as e: assert len(str(e).splitlines()) == 1 and len(str(e)) < 3000
            else:
                assert len(df) and df.label.map(lambda x: x is None or isinstance(x, str) and x == x.strip()).all()
                if 'path' in df: assert df.path.map(os.path.realpath).nunique() == len(df) or df[['time_start', 'time_end']].nunique().max() > 1


@SMALL
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode('utf-8', 'replace'))
       | st.dictionaries(st.sampled_from(['folder', 'source', 'classes', 'lr', 'seeds', 'n_train', 'study', 'annotations', 'contains', 'x']), st.recursive(
           st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2), max_leaves=5),
           max_size=4).map(lambda d: json.dumps(d).encode()))
def test_any_study_file_is_read_or_one_line(tmp_path_factory, data):
    from kinetics_dance.study.settings import read_settings
    at = tmp_path_factory.getbasetemp()/'any.yaml'
    at.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: read_settings(at)
        except StudyError as e: assert len(str(e).splitlines()) == 1, str(e)


@SMALL
@given(st.lists(st.tuples(st.floats(0, 9e5), st.floats(0, 9e5)), min_size=2, max_size=2, unique_by=lambda t: (round(t[0], 6), round(t[1], 6))))
def test_other_times_are_other_clips(times):
    a, b = (clip_id('aaaaaaaaaaa', *t) for t in times)
    assert a != b
    import re
    assert re.fullmatch(r'aaaaaaaaaaa(_\d{6,}(-\d+)?){2}', a)


# --- environments

def shell(tmp_path, *args, **env):
    return subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', *map(str, args)], cwd=tmp_path, capture_output=True, timeout=300,
                          env={k: v for k, v in os.environ.items() if not k.startswith(('LC_', 'LANG', 'PYTHONIO', 'PYTHONUTF8'))} | dict(PYTHONPATH=str(ROOT)) | env)


@pytest.mark.parametrize('env', [dict(LC_ALL='C'), dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'), dict(PYTHONIOENCODING='ascii'), dict(PYTHONIOENCODING='utf-8:strict'), dict(TMPDIR='{long}')], ids=['C', 'old', 'ascii', 'strict', 'tmp'])
def test_terminals_and_temporary_folders(tmp_path, env):
    "An account with names that the terminal does not know; a folder for temporary files of 200 letters"
    from kinetics_dance.video.decoding import numbered_clip
    at = tmp_path/'p'
    for k, c in enumerate(['跳舞', '走路']*3):
        to = at/'videos'/c/f'v{k}.mp4'
        to.parent.mkdir(parents=True, exist_ok=True)
        numbered_clip(to, n=9 + k, size=(48, 64), sound=False)
    file(at/'videos/跳舞'/os.fsdecode(b'\xff.mp4'))
    (at/'settings.ini').write_text('[DEFAULT]\n')
    study(at)
    long = tmp_path/('t'*100)/('u'*100)
    long.mkdir(parents=True)
    p = shell(at, 'download', '--study', 'mine', **{k: v.format(long=long) for k, v in env.items()})
    if 'PYTHONUTF8' in env: return check_old(p)
    assert p.returncode == 0 and b'Traceback' not in p.stderr and b'warning: left out of the folder' in p.stderr, p.stderr.decode(errors='replace')
    assert len(ClipTable(at/'runs/mine/clips.sqlite').frame()) == 6


def check_old(p):
    "Where Python reads names as ASCII, it says how to make it read them as they are"
    assert p.returncode == 2 and b'set PYTHONUTF8=1' in p.stderr and len(p.stderr.splitlines()) == 1, p.stderr


@pytest.mark.parametrize('device', ['cuda:99', 'mps', 'cuda'])
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    "Said before data are made, not after hours of them"
    import torch
    from report.common import UserError
    from report.study import check_values, load_study
    if device == 'cuda' and torch.cuda.is_available() or device == 'mps' and torch.backends.mps.is_available(): pytest.skip('it is there')
    folder(tmp_path, *(f'{c}/{k}.mp4' for c in ('a', 'A') for k in range(3)))
    (tmp_path/'s.yaml').write_text(f'source: folder\nfolder: {tmp_path}/videos\ncontains: ""\nn_train: 0\nn_valid: 1\nn_test: 0\ndevice: {device}\n')
    _, params, decl, shown = load_study(tmp_path/'s.yaml', ROOT)
    with pytest.raises(UserError, match=f'device: {device} was asked for, but this machine has none'): check_values(params, decl, ROOT, shown)
    check_values(params | dict(device='cpu'), decl, ROOT, shown)
    check_values(params, decl, ROOT, shown, trains=False)       # `--only 00_data 01_frames`
    assert capsys.readouterr().err.count("warning: ") == 2


def test_workers_where_temporary_names_are_too_long(noise, tmp_path):  # noqa: F811
    "A socket's name has 108 bytes; batches come all the same, or one line says what to do"
    from test_loading_faults import run
    long = tmp_path/('t'*100)/('u'*100)
    long.mkdir(parents=True)
    for f in ('frames', 'table.csv'): (tmp_path/f).symlink_to(noise[0].parent/f)
    p = run(LONG, f'export TMPDIR={long};', cwd=tmp_path)
    assert p.returncode == 0 and 'Traceback' not in p.stderr, p.stderr
    assert all(l == '54' or 'TMPDIR' in l for l in p.stdout.splitlines()) and len(p.stdout.splitlines()) == 2, p.stdout


LONG = '''
import pandas as pd
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.dataloader import ClipDataLoaders
if __name__ == '__main__':
    table = pd.read_csv('table.csv')
    for start in ('fork', 'spawn'):
        dls = ClipDataLoaders.from_store(FrameStore('frames'), table, n_frames=8, crop=(48, 64), bs=9, num_workers=2, start=start)
        try: print(sum(len(y) for x, y in dls.train))
        except StudyError as e: print(e)
'''
