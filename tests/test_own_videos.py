"Commands on videos and predictions as people have them: compare, check, and their help."
import contextlib, io, json, shutil, warnings
import numpy as np, pytest
from kinetics_dance.evaluation.predictions import as_table, simulate
from kinetics_dance.study.cli import main


def run(*args):
    "What the command prints, and its exit code"
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main([str(a) for a in args])
        except SystemExit as e: return out.getvalue(), err.getvalue(), e.code


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    at = tmp_path_factory.mktemp('predictions')
    p = simulate(np.random.default_rng(0), dict(weak=.5, strong=.9), uploads=80, seeds=2)
    for m in p.probs:
        (at/m).mkdir()
        for s in range(2): as_table(p, m, s).astype({'group': str}).to_parquet(at/m/f'seed{s}.parquet')
    as_table(p, 'weak', 0).to_csv(at/'mine.csv', index=False)
    return at


def test_compare_a_folder_and_a_file(files):
    out, err, code = run('compare', files/'weak', files/'strong', '--json', '--resamples', 200)
    got = json.loads(out)
    assert code == 0 and set(got['models']) == {'weak', 'strong'} and got['models']['weak']['seeds'] == [0, 1]
    assert 'strong' in got['verdicts'][0]
    out, err, code = run('compare', files/'mine.csv', files/'strong'/'seed0.parquet', files/'strong'/'seed1.parquet', '--resamples', 200)
    assert code == 0 and 'strong: accuracy 0.' in out and 'mine: accuracy 0.' in out and not err, err


def test_the_same_model_of_two_folders_has_two_names(files, tmp_path):
    shutil.copytree(files/'weak', tmp_path/'weak')
    from kinetics_dance.study import cli
    assert sorted(cli._gathered([files/'weak', tmp_path/'weak'])) == sorted([f'{files}/weak: weak', f'{tmp_path}/weak: weak'])


@pytest.mark.parametrize('args, said', [(['nothing.csv'], 'no such file or folder'), (['EMPTY'], 'no predictions'), (['TWICE', 'AGAIN'], 'was read from')])
def test_compare_says_what_is_wrong(files, tmp_path, args, said):
    (tmp_path/'empty').mkdir()
    shutil.copy(files/'mine.csv', tmp_path)
    names = dict(EMPTY=tmp_path/'empty', TWICE=files/'mine.csv', AGAIN=tmp_path/'mine.csv')
    out, err, code = run('compare', *[names.get(a, a) for a in args])
    assert (out, code) == ('', 2) and said in err and len(err.splitlines()) == 1, err


def test_check_says_what_is_odd(tmp_path):
    from kinetics_dance.video.decoding import numbered_clip
    from kinetics_dance.video.odd_files import odd_file
    numbered_clip(tmp_path/'plain.mp4', n=30, size=(120, 160))
    (tmp_path/'text.mp4').write_text('no video')
    cut = odd_file('cut short, AVI', tmp_path)
    out, err, code = run('check', tmp_path/'plain.mp4', cut, tmp_path/'text.mp4', '--json')
    plain, short, text = json.loads(out)
    assert code == 2 and plain['odd'] == [] and plain['frames'] == 30 and short['odd'] and 'not a video' in text['error']
    out, err, code = run('check', tmp_path/'plain.mp4')
    assert code == 0 and 'nothing odd' in out


@pytest.mark.parametrize('command', ['predict', 'compare', 'download'])
def test_flags_have_no_type_in_the_help(command):
    for args in ([command, '--help'], ['--help']):
        out, err, code = run(*args)
        assert code == 0 and '<bool>' not in out and '--help' in out
