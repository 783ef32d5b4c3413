//! Servers for the tests: one that most of them share, and their own for those that stop it.

use std::path::PathBuf;
use std::sync::Arc;

use herder::secret::Secret;
use herder::store::{self, setup::setup};
use herder::throwaway::{Settings, ThrowawayPostgres};
use tokio::sync::OnceCell;

use super::setup::pool;

/// The database that every control database is a copy of: copying takes a tenth of what the set-up takes.
const TEMPLATE: &str = "herder_template";

/// A server, and what all tests on it share.
pub(crate) struct Cluster {
    server: Server,
    template: OnceCell<()>,
}

enum Server {
    /// Ends with the process.
    Shared(&'static ThrowawayPostgres),
    /// Ends with its test.
    Own(ThrowawayPostgres),
}

impl Cluster {
    /// The server of this test process.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Cluster>> = OnceCell::const_new();
        let start = async || Self::new(Server::Shared(crate::server::shared().await));
        Arc::clone(SHARED.get_or_init(start).await)
    }

    /// A server that a test may stop.
    pub(crate) async fn own(settings: Settings) -> Arc<Self> {
        let start = tokio::task::spawn_blocking(move || ThrowawayPostgres::start_with(&settings));
        Self::new(Server::Own(start.await.expect("no panic").expect("a server")))
    }

    fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            template: OnceCell::new(),
        })
    }

    /// The server itself.
    pub(crate) fn server(&self) -> &ThrowawayPostgres {
        match &self.server {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        }
    }

    /// Where to connect to a database, as the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        self.server().url(database)
    }

    /// Makes a control database, set up.
    pub(crate) async fn control(&self, name: &str) {
        self.template
            .get_or_init(async || self.make_template().await)
            .await;
        self.create(&format!("{name} template {TEMPLATE}")).await;
    }

    /// Makes a database.
    pub(crate) async fn create(&self, database: &str) {
        let postgres = pool(self, "postgres");
        super::tell(&postgres, &format!("create database {database}")).await;
        postgres.close().await;
    }

    async fn make_template(&self) {
        self.create(TEMPLATE).await;
        let pool = store::pool(&Secret::new(self.url(TEMPLATE)), "tests", 2).expect("a pool");
        setup(&pool).await.expect("the set-up");
        pool.close().await;
    }

    /// A program of this server's PostgreSQL.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let options = self.server().dir().join("data/postmaster.opts");
        let options = std::fs::read_to_string(options).expect("postmaster.opts");
        let postgres = options.split_whitespace().next().expect("the server's program");
        PathBuf::from(postgres).with_file_name(name)
    }
}
