//! The Hydra stack on a real engine with real servers: what most tests of the agent beside Docker begin with.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::rows;
use super::{Engine, Options, Version};
use crate::agent::Agent;
use crate::binary::root;
use crate::deployment::Deployment;
use crate::world::World;

/// The stack as far as tests speak of it, with the agent once it is asked for.
pub struct Stack {
    /// Its policy.
    pub text: String,
    /// Who is where.
    pub deployment: Deployment,
    /// Before the engine: it stops first.
    agent: Option<Agent>,
    /// The engine with all containers.
    pub engine: Engine,
}

impl Stack {
    /// Starts engine and containers, and waits until the servers answer.
    pub fn start(version: Version, options: Options) -> Result<Self> {
        let path = root().join("policies/hydra.yaml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut deployment = Deployment::of(&text)?;
        deployment.topology.containers.retain(|container| NAMES.contains(&container.name.as_str()));
        let engine = Engine::deploy(version, options, &deployment, |name| serve(name).to_owned())?;
        engine.exec_until(POSTGRES, &["psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1"])?;
        engine.exec_until(REDIS, &["redis-cli", "ping"])?;
        engine.exec_until(PAGES, &["curl", "-sS", "http://127.0.0.1/"])?;
        Ok(Self { text, deployment, agent: None, engine })
    }

    /// Starts the agent with the stack's policy.
    pub fn enforce(&mut self) -> Result<&Agent> {
        self.agent = None;
        Ok(self.agent.insert(self.engine.agent(&self.text)?))
    }

    /// The running agent.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent was started")
    }

    /// The host that it is on.
    pub fn world(&self) -> &World {
        self.engine.world()
    }

    /// A container's IPv4 address on a network, as text.
    pub fn address(&self, container: &str, network: &str) -> Result<String> {
        Ok(self.engine.address(container, network)?.to_string())
    }

    /// Asks `hydractl explain`, and fails where exit code or fields are others than these.
    pub fn explains(
        &self,
        from: &str,
        to: &str,
        port: &str,
        code: i32,
        fields: &[(&str, &str)],
    ) -> Result<()> {
        let output = self.agent()?.ctl(self.world(), &["explain", from, to, port, "-o", "json"])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(code),
            "explain {from} {to} {port} ended with {}: {said}",
            output.status
        );
        let answer = Value::Array(vec![serde_json::from_str(&said)?]);
        ensure!(
            !rows(&answer, fields)?.is_empty(),
            "explain {from} {to} {port} says {said} instead of {fields:?}"
        );
        Ok(())
    }

    /// Takes the agent out, to stop it or to kill it.
    pub fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent was started")
    }
}

/// Has PostgreSQL; on hydra-databases and hydra-ai-services.
pub const POSTGRES: &str = "hydra-postgres";
/// Has Redis.
pub const REDIS: &str = "hydra-redis";
/// Has nginx, and pages for users.
pub const PAGES: &str = "homepage";
/// In `ai-services`, on its network only.
pub const CLIENT: &str = "hydra-letta";
/// In `apps`, on its network only.
pub const APP: &str = "open-webui";
/// Has nginx; on hydra-infra and hydra-apps.
pub const GRAFANA: &str = "hydra-grafana";
/// Has nginx; on hydra-ai-services and hydra-apps.
pub const LITELLM: &str = "hydra-litellm";

/// All of them.
const NAMES: [&str; 7] = [POSTGRES, REDIS, PAGES, CLIENT, APP, GRAFANA, LITELLM];

fn serve(name: &str) -> &'static str {
    match name {
        POSTGRES => "postgres",
        REDIS => "redis",
        PAGES => "web 80 443",
        GRAFANA => "web 3003",
        LITELLM => "web 4000",
        _ => "nothing",
    }
}
