"""What makes parts of the documents: `python -m docs.building.NAME --write`. `nox -s docs` builds the site."""
