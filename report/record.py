"The run record of a study: what was run, with what, on which machine; no host names, no absolute paths."
import importlib.metadata, platform, re, shutil, subprocess
from kinetics_dance.core.platform import cores, cpu_name, memory_size
from kinetics_dance.evaluation.preregistration import read_looks
from .common import pins, read_json, settings, write_json


def _out(*cmd, cwd=None):
    try: return subprocess.run(cmd, cwd=cwd, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError): return ''


def machine():
    res = dict(cpu=cpu_name(), cores=cores(), memory_gb=round((memory_size() or 0)/1e9, 1), python=platform.python_version(),
               platform=f'{platform.system()} {platform.machine()}')
    if shutil.which('nvidia-smi') and (gpu := _out('nvidia-smi', '--query-gpu=name', '--format=csv,noheader')): res['gpu'] = gpu.replace('\n', ', ')
    return res


def versions(root):
    "{package: version installed} of what settings.ini asks for, then of everything else that is locked"
    cfg = settings(root)
    asked = (cfg[k] for k in cfg if k.endswith('requirements'))
    direct = re.findall(r'(?:^|\s)([\w.-]+)', ' '.join(['', *asked]))
    def get(names):
        res = {}
        for n in names:
            try: res[n] = importlib.metadata.version(n)
            except importlib.metadata.PackageNotFoundError: pass
        return res
    direct = get(dict.fromkeys(direct))
    norm = {re.sub(r'[-_.]+', '-', n).lower() for n in direct}
    return direct, get(n for n in pins(root) if re.sub(r'[-_.]+', '-', n).lower() not in norm)


def write_record(run, params):
    "Write `record.json` of a study if anything in it changed"
    direct, rest = versions(run.root)
    commit = _out('git', 'rev-parse', 'HEAD', cwd=run.root) or None
    recs = {s: run.record(s) for s in run.stages if run.record(s)}
    rec = dict(study=run.study, parameters={k: v for k, v in params.items() if k != 'runs'}, versions=direct, other_versions=rest,
               commit=commit, dirty=bool(_out('git', 'status', '--porcelain', cwd=run.root)) if commit else None,
               finished=max((r['finished'] for r in recs.values()), default=None),
               looks=read_looks(run.folder), seconds={s: r['seconds'] for s, r in recs.items()}, cells={s: r['cells'] for s, r in recs.items()}, machine=machine())
    if rec != read_json(run.folder/'record.json'): write_json(run.folder/'record.json', rec)
