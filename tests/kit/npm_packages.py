"""How tests ask npm for a package: what was fetched once does, and an absent registry is soon given up.

By itself npm asks the registry anew, and where that cannot be reached it waits for ten seconds and then for a minute.
"""

NPM_FLAGS = (
    "--prefer-offline", "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000",
    "--ignore-scripts", "--no-audit", "--no-fund",
)  # fmt: skip
