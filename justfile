# Herder's chores. CI runs the same commands: see .ci/run.

# Lists the recipes.
default:
    @{{just_executable()}} --list --unsorted

# Does it compile?
check:
    cargo check --workspace --all-targets

# All tests. They start their own PostgreSQL servers and make their own Python.
test *ARGS:
    cargo test {{ARGS}}

# The large fleets: 1,000 schemas, 200 databases. Takes minutes.
test-large:
    cargo test --test it example_fleets -- --ignored --nocapture --test-threads=1

# Herder beside what people use today: about ten minutes. See benches/README.md.
bench *ARGS:
    cargo build --profile bench --bins
    cargo bench --bench fleet -- {{ARGS}}

# How enqueue and run grow, up to 100,000 tenants: takes long.
bench-growth *ARGS:
    cargo build --profile bench --bins
    cargo bench --bench fleet -- growth {{ARGS}}

# A real fleet under a random stream of faults: see docs/RELIABILITY.md. --minutes M --seed S
chaos *ARGS:
    cargo build -p herder-worker -p herder-enqueuer
    cargo test -p herder --test chaos -- {{ARGS}}

# The state machine against its model, 100,000 steps; `cargo test` takes 1,000.
model STEPS="100000":
    HERDER_MODEL_STEPS={{STEPS}} cargo test -p herder --test it model:: -- --nocapture

# Formats the code.
fmt:
    cargo fmt --all

# Format, clippy, the freshness of .sqlx/ and the docs.
lint:
    bash .ci/run format clippy sqlx docs

# Writes .sqlx/ anew, after a change to a statement or to migrations/.
prepare:
    scripts/prepare-sqlx

# Licenses, sources and duplicates of the dependencies (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# Known vulnerabilities of the dependencies (needs cargo-deny, and GitHub for its database).
advisories:
    cargo deny check advisories

# Watch a fleet of demo tenants being migrated.
demo *ARGS:
    cargo demo {{ARGS}}

# The API's docs, in a browser.
docs:
    cargo doc --workspace --no-deps --open

# All that CI does, in its own target folder.
ci:
    CI=true bash .ci/run
