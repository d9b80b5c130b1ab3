"studies/schema.json, from which editors complete and check study files: `python -m report.schema`."
import json
from .common import ROOT, write_atomic


def schema():
    "The file's text"
    from kinetics_dance.core.settings import json_schema
    return json.dumps(json_schema(), indent=1) + '\n'


if __name__ == '__main__': write_atomic(ROOT/'studies/schema.json', schema())
