"""Delete what a study and its site wrote, and nothing else.

    python -m report.clean demo        # or: make clean STUDY=demo"""
import argparse, os, re, shutil
from kinetics_dance.core.ownership import KINDS, MARKER
from .common import ROOT, UserError, main

# One of these makes a folder one of a study; all of them are what `make report` and the commands write there
SIGNS = 'clips.sqlite', 'origin.json', 'record.json', 'report.json', 'stages', 'executed'
FILES = re.compile(r'clips\.(sqlite(-wal|-shm|-journal)?|csv)|(origin|record|report|known|answer)\.json|answer\.png|annotations\.csv|storage\.url'
                   r'|\.(lock|frames\.lock|download\.(lock|holder)|probe.*)|\.[\w.-]+\.\d+\.(json|csv|sqlite)')
FOLDERS = {'models', 'features', 'tables', 'figures', 'stages', 'executed', 'pages', 'media', 'budgets', 'tracking', 'screens', '.site', '.kernels'}


def split_up(folder):
    "(what goes, what stays) of a study's folder"
    goes, stays = [], []
    for p in sorted(folder.iterdir()):
        if p.is_symlink(): stays.append(p)          # what it leads to may be anybody's
        elif p.is_file(): (goes if FILES.fullmatch(p.name) or p.name == MARKER else stays).append(p)
        elif p.name in FOLDERS: goes.append(p)
        elif p.name in KINDS:                       # videos, frames, packs, uploads: what is called as we call it
            ours = re.compile('|'.join([*filter(None, KINDS[p.name][:2]), re.escape(MARKER)]), re.A)
            for q in p.iterdir(): (goes if q.is_file() and not q.is_symlink() and ours.fullmatch(q.name) else stays).append(q)
        elif p.name == 'predictions':               # those of models that we trained; others were put there
            for q in p.iterdir(): (goes if (folder/'models'/q.name).is_dir() else stays).append(q)
        else: stays.append(p)
    return goes, stays


def clean(root, study):
    "Delete the results of a study and the site; returns what stays. `UserError` before anything is deleted where a folder is not ours"
    if not re.fullmatch(r'[A-Za-z0-9][\w-]*', study, re.A): raise UserError(f'STUDY: {study!r} is not a name of a study')
    folder, site = root/'runs'/study, root/'_site'
    for p in (folder, site):
        if p.is_symlink(): raise UserError(f'{p.relative_to(root)}: is a link to {os.readlink(p)}; nothing was deleted')
    if folder.exists() and not (folder.is_dir() and (any((folder/s).exists() for s in SIGNS) or not any(folder.iterdir()))):
        raise UserError(f'runs/{study}: is not the folder of a study; nothing was deleted')
    if site.exists():
        try: from .site import check_site
        except ImportError: raise UserError('_site: `make env` comes first, to tell which of its files were made here') from None
        check_site(site)
    goes, stays = split_up(folder) if folder.exists() else ([], [])
    for p in [*goes, *([site] if site.exists() else [])]:
        if p.is_dir() and not p.is_symlink(): shutil.rmtree(p)
        else: p.unlink()
    for p in [*(folder/k for k in (*KINDS, 'predictions')), folder]:
        if p.is_dir() and not p.is_symlink() and not any(p.iterdir()): p.rmdir()
    return stays


def command():
    a = argparse.ArgumentParser(description='Delete the results of a study and the site.')
    a.add_argument('study')
    study = a.parse_args().study
    stays = clean(ROOT, study)
    print(f'deleted: what was made in runs/{study}, and _site')
    if stays: print('left, because it was not made here: ' + ', '.join(repr(str(p.relative_to(ROOT))) for p in stays[:10]) + (f' and {len(stays) - 10} more' if len(stays) > 10 else ''))


if __name__ == '__main__': main(command)
