"""One tenant."""

import argparse
import sys

from alembic.config import CommandLine
from alembic.runtime.environment import EnvironmentContext
from sqlalchemy.engine import make_url

from herder_warm.connections import close_left_open
from herder_warm.errors import Failure, explain
from herder_warm.halves import Halves
from herder_warm.project import Project
from herder_warm.run import Run
from herder_warm.urls import sqlalchemy_url

# The options as the real command line makes them, once for each direction: env.py may look at any of them.
OPTIONS = {
    direction: CommandLine(prog="alembic").parser.parse_args([direction, "head"]) for direction in ("upgrade", "downgrade")
}


def migrate(request):
    """Brings one tenant to `target`, exactly as `alembic upgrade` or `alembic downgrade` would."""

    def steps(script, run):
        revisions = script._upgrade_revs if request["direction"] == "upgrade" else script._downgrade_revs
        return run.watch(lambda heads: revisions(request["target"], heads))

    run, left_open = run_env(request, steps, Halves(request["tell"]))
    return {
        "besides": run.besides,
        "said": run.said,
        "steps": run.steps,
        "heads_before": run.heads_before,
        "ledger": run.ledger,
        "outer_transaction": run.outer_transaction,
        "connections": dict(run.connections, left_open=left_open),
    }


def look(request):
    """Where env.py leads: what an unqualified name would mean there. Alembic changes nothing, wherever that is."""
    run, _ = run_env(request, lambda _script, run: run.look, None, dont_mutate=True)
    return dict(run.place, besides=run.besides)


def run_env(request, steps, halves, **options):
    """Runs env.py with these steps, and closes what it leaves open."""
    project = Project.open(request["ini"], request["section"])
    scheme = request["scheme"] or project.url_scheme() or "postgresql"
    url = sqlalchemy_url(request["url"], scheme)
    run = Run.current = Run(request, url)
    run.halves = halves
    target, script = request["target"], project.script
    try:
        config = prepare(project, request, url, target)
        options.update(fn=steps(script, run), as_sql=False, starting_rev=None, destination_rev=target, tag=None)
        with EnvironmentContext(config, script, **options):
            script.run_env()
    except BaseException as error:
        # Whoever leaves with 0 has come to a good end, as the alembic command would. The ledger says how far that is.
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):
            raise (run.reached_out or explain(error, project, run)) from None
    finally:
        Run.current = None
        left_open = close_left_open(run)
    if run.reached_out is not None:  # Somebody caught it nevertheless.
        raise run.reached_out
    if not run.started:
        raise Failure("env", "env.py ended without running any migration", "env.py must call context.run_migrations()")
    return run, left_open


def prepare(project, request, url, revision):
    """What env.py finds: its configuration and arguments, as the command line would have them."""
    direction = request["direction"]
    arguments = {"url": url}
    if request["schema"] is not None:
        arguments["schema"] = request["schema"]
    database = make_url(url).database
    for name, value in request["x"].items():
        arguments[name] = value.replace("{schema}", request["schema"] or "").replace("{database}", database)
    options = argparse.Namespace(**vars(OPTIONS[direction]))
    options.config, options.name, options.revision = [project.ini], project.section, revision
    options.sql = request["do"] == "render"
    # `context.get_x_argument()` reads these, and only these.
    options.x = ["{}={}".format(name, value) for name, value in arguments.items()]
    config = project.config(cmd_opts=options, attributes={"x_args": arguments})
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    # Without the URL: crash reporters like to print it.
    sys.argv = ["alembic", "-c", project.ini, "-n", project.section, direction, revision]
    return config
