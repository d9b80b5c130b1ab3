"Runs a study through papermill and renders its site: `python -m report.run`, `python -m report.site`."
