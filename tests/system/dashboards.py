#!/usr/bin/env python3
"""Rules that every dashboard in packaging/dashboards keeps. Needs neither root nor a server."""

import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, check, finish

BUILT_IN = {"__rate_interval", "__interval", "__range"}
UNITS = {
    "short", "none", "percentunit", "s", "ops", "reqps", "bytes", "Bps", "dtdurations", "dateTimeFromNow", "cores",
}


def panels_of(dashboard):
    """Every panel that shows something; rows are headings."""
    flat = []
    for panel in dashboard["panels"]:
        flat += [panel, *panel.get("panels", [])]
    return [panel for panel in flat if panel["type"] != "row"]


def expressions_of(panel):
    return [target["expr"] for target in panel["targets"]]


def must(problems, holds, text):
    if not holds:
        problems.append(text)


def lint(dashboard, documented):
    problems = []
    for name in ("uid", "title", "description", "tags", "schemaVersion", "refresh"):
        must(problems, dashboard.get(name), f"the dashboard has no {name}")
    must(problems, dashboard.get("id") is None, "the dashboard carries an id of some server")
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    must(problems, variables.get("datasource", {}).get("type") == "datasource", "no variable for the datasource")
    for name, variable in variables.items():
        if variable["type"] == "query":
            uid = variable.get("datasource", {}).get("uid")
            must(problems, uid == "${datasource}", f"variable {name}: datasource {uid}")
    ids, titles, taken = set(), set(), {}
    for panel in dashboard["panels"]:
        must(problems, panel["id"] not in ids, f"id {panel['id']} twice")
        ids.add(panel["id"])
        grid = panel["gridPos"]
        must(problems, grid["x"] + grid["w"] <= 24, f"{panel['title']}: wider than the page")
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                must(problems, (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}")
                taken[x, y] = panel["title"]
    for panel in panels_of(dashboard):
        title = panel.get("title", "")
        must(problems, title, f"panel {panel['id']} has no title")
        must(problems, title not in titles, f"two panels are called {title}")
        titles.add(title)
        text = panel.get("description", "")
        must(problems, text.endswith(".") and len(text) > 20, f"{title}: no description in a sentence")
        must(problems, panel.get("datasource", {}).get("uid") == "${datasource}", f"{title}: a fixed datasource")
        unit = panel["fieldConfig"]["defaults"].get("unit")
        must(problems, unit in UNITS, f"{title}: unit {unit}")
        for target in panel["targets"]:
            problems += [f"{title}: {text}" for text in lint_target(target, variables, documented)]
    return problems


def lint_target(target, variables, documented):
    problems = []
    expression = target["expr"]
    must(problems, target.get("datasource", {}).get("uid") == "${datasource}", "a target with a fixed datasource")
    must(problems, target.get("legendFormat"), "a target without a legend")
    must(problems, target.get("refId"), "a target without a refId")
    for span in re.findall(r"\[([^\]]*)\]", expression):
        must(problems, span == "$__rate_interval", f"a range of [{span}], not [$__rate_interval]")
    for call in re.findall(r"\b(?:rate|increase|irate)\(", expression):
        must(problems, "[$__rate_interval]" in expression, f"{call} without $__rate_interval")
    for name in re.findall(r"\$\{?(\w+)", expression):
        must(problems, name in variables or name in BUILT_IN, f"unknown variable {name}")
    for metric, selector in re.findall(r"\b((?:rushkv|process)_\w+|up)(\{[^}]*\})?", expression):
        must(problems, 'instance=~"$instance"' in selector, f"{metric} does not select by instance")
        must(problems, 'job=~"$job"' in selector, f"{metric} does not select by job")
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        must(problems, metric == "up" or {metric, base} & documented, f"{metric} is not in docs/metrics.md")
    return problems


def main():
    documented = set()
    for line in (REPO / "docs/metrics.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| `(\w+)", line):
            documented.add(found[1])
    files = sorted((REPO / "packaging/dashboards").glob("*.json"))
    with check("there are dashboards", needed=True):
        assert files
    dashboards = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    with check("each has a uid and a title of its own"):
        for name in ("uid", "title"):
            if len({dashboard[name] for dashboard in dashboards.values()}) != len(dashboards):
                raise Failed(f"two of the same {name}")
    for name, dashboard in dashboards.items():
        with check(f"{name} keeps the rules"):
            problems = lint(dashboard, documented)
            if problems:
                raise Failed("\n".join(problems))


if __name__ == "__main__":
    finish(main)
