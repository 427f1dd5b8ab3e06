//! Prometheus metrics, made from the kernel's counters when they are asked for. The number of series is bounded by the policy's
//! tiers and the reasons, never by traffic. Documented in `docs/metrics.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hydra_common::id::Tier;
use hydra_common::tables::{Count, Gauge};
use hydra_common::verdict::{Reason, Verdict};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::App;
use super::view::Names;
use crate::inventory::snapshot::DockerState;
use crate::policy::rows::Owner;
use crate::published::{Counters, Published};

/// Upper bounds of `hydra_attach_seconds`.
const ATTACH_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0];

const SPILLED: &str =
    "Flows that found no room in the flow table, or had their share of it, and can be evicted";
const REFUSED: &str = "Flows denied because neither part of the flow table took them";

/// The text of a scrape.
pub(super) async fn scrape(app: &Arc<App>) -> Result<String, String> {
    let state = app.handle.state.borrow().clone();
    let (reader, names) = (app.handle.reader.clone(), app.memory.names(&state));
    let attach = app.memory.attach_seconds();
    tokio::task::spawn_blocking(move || {
        let (counters, readable) = match reader.counters() {
            Ok(counters) => (counters, true),
            Err(error) => {
                tracing::warn!(%error, "the kernel's tables cannot be read");
                (Counters::default(), false)
            }
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape { state, names, counters, readable, attach }));
        let mut out = String::new();
        text::encode(&mut out, &registry).map_err(|_| "the metrics could not be written".to_owned())?;
        Ok(out)
    })
    .await
    .map_err(|e| format!("the metrics could not be gathered: {e}"))?
}

/// Attach times since the agent started, in buckets.
#[derive(Clone, Debug, Default)]
pub(super) struct AttachSeconds {
    buckets: [u64; ATTACH_BUCKETS.len() + 1],
    sum: f64,
    count: u64,
}

impl AttachSeconds {
    /// One more port was covered.
    pub(super) fn observe(&mut self, seconds: f64) {
        let bucket = ATTACH_BUCKETS.iter().position(|le| seconds <= *le).unwrap_or(ATTACH_BUCKETS.len());
        self.buckets[bucket] += 1;
        self.sum += seconds;
        self.count += 1;
    }
}

/// One moment's values.
struct Scrape {
    state: Arc<Published>,
    names: Names,
    counters: Counters,
    /// Whether the tables could be read: what cannot is left out rather than shown as zero.
    readable: bool,
    attach: AttachSeconds,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if self.readable {
            self.traffic(&mut encoder)?;
            self.drops(&mut encoder)?;
            self.limited(&mut encoder)?;
            let flows = i64::try_from(self.counters.flows).unwrap_or(i64::MAX);
            gauge(&mut encoder, "hydra_flows", "Live flows", flows)?;
            for (name, help, count) in [
                ("hydra_flows_spilled", SPILLED, self.counters.spilled),
                ("hydra_flows_refused", REFUSED, self.counters.gauge(Gauge::FlowsRefused)),
            ] {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstCounter::new(count).encode(metric)?;
            }
            let lost = self.counters.gauge(Gauge::EventsLost);
            let help = "Events of single packets that the kernel could not hand over";
            let metric = encoder.encode_descriptor("hydra_events_lost", help, None, MetricType::Counter)?;
            ConstCounter::new(lost).encode(metric)?;
        }
        let capacity = i64::from(self.state.flow_capacity);
        gauge(&mut encoder, "hydra_flow_table_capacity", "Flows that the table has room for", capacity)?;
        let revision = self.state.applied.as_ref().map_or(0, |a| i64::from(a.revision));
        let help = "Number of the policy that the kernel enforces, 0 before the first";
        gauge(&mut encoder, "hydra_policy_revision", help, revision)?;
        let ok = self.readable && self.state.applied.is_some() && self.state.not_enforced.is_empty();
        let help = "1 while everything that the policy asks for is enforced";
        gauge(&mut encoder, "hydra_enforcement_ok", help, i64::from(ok))?;
        if self.state.snapshot.docker != DockerState::Off {
            let up = matches!(self.state.snapshot.docker, DockerState::Up { .. });
            let help = "1 while Docker answers; left out where nobody asks it";
            gauge(&mut encoder, "hydra_docker_up", help, i64::from(up))?;
        }
        let tiers = self.state.endpoints.iter().map(|e| e.tier.as_str());
        by_tier(&mut encoder, "hydra_endpoints", "Addresses of containers by tier", tiers)?;
        let tiers = self.state.ports.iter().map(|p| p.owner.as_ref().map_or("unknown", Owner::tier));
        by_tier(&mut encoder, "hydra_published_ports", "Published ports by the tier behind them", tiers)?;
        let help = "Changes of somebody else to hydra's programs, pins and tables that were undone since the agent started";
        let metric = encoder.encode_descriptor("hydra_repairs", help, None, MetricType::Counter)?;
        ConstCounter::new(self.state.repairs).encode(metric)?;
        self.attach(&mut encoder)
    }
}

impl Scrape {
    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut cells: BTreeMap<(String, String, &str), Count> = BTreeMap::new();
        let mut add = |from, to, verdict: Verdict, count: &Count| {
            let cell =
                cells.entry((self.names.tier(from), self.names.tier(to), verdict.as_str())).or_default();
            cell.packets += count.packets;
            cell.bytes += count.bytes;
        };
        for ((from, to, audited), count) in &self.counters.traffic {
            add(Tier(*from), Tier(*to), if *audited { Verdict::Audited } else { Verdict::Allowed }, count);
        }
        for (key, count) in &self.counters.drops {
            // Audited packets passed, and are in the traffic.
            if Verdict::from_row(key.verdict) == Verdict::Denied {
                add(key.source, key.destination, Verdict::Denied, count);
            }
        }
        for (name, help, of) in [
            ("hydra_packets", "Wire packets by tiers and verdict", (|c| c.packets) as fn(&Count) -> u64),
            ("hydra_bytes", "Wire bytes by tiers and verdict, Ethernet header included", |c| c.bytes),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ((from, to, verdict), count) in &cells {
                let labels =
                    [("source_tier", from.as_str()), ("destination_tier", to.as_str()), ("verdict", verdict)];
                ConstCounter::new(of(count)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn drops(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut cells: BTreeMap<(String, String, &str), u64> = BTreeMap::new();
        for (key, count) in &self.counters.drops {
            if Verdict::from_row(key.verdict) == Verdict::Denied {
                let names = (self.names.tier(key.source), self.names.tier(key.destination));
                *cells.entry((names.0, names.1, Reason::from_row(key.reason).as_str())).or_default() +=
                    count.packets;
            }
        }
        let help = "Denied wire packets by tiers and reason";
        let mut metric = encoder.encode_descriptor("hydra_drops", help, None, MetricType::Counter)?;
        for ((from, to, reason), packets) in &cells {
            let labels =
                [("source_tier", from.as_str()), ("destination_tier", to.as_str()), ("reason", reason)];
            ConstCounter::new(*packets).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Of every rule with a limit, 0 included: an alert on a series that is not there never fires.
    fn limited(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Packets denied because the limits of all rules that allow them were used up, by the first of these";
        let mut metric = encoder.encode_descriptor("hydra_limit_denied", help, None, MetricType::Counter)?;
        let Some(applied) = &self.state.applied else { return Ok(()) };
        let rules = applied.model.rules.iter().filter(|rule| rule.limit.is_some());
        for (rule, limit) in rules.zip(&applied.compiled.limits) {
            let packets = self.counters.limited.get(limit.bucket as usize).copied().unwrap_or(0);
            ConstCounter::new(packets).encode(metric.encode_family(&[("rule", rule.name.as_str())])?)?;
        }
        Ok(())
    }

    fn attach(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Seconds from a port's appearance to its programs";
        let mut metric =
            encoder.encode_descriptor("hydra_attach_seconds", help, None, MetricType::Histogram)?;
        let bounds = ATTACH_BUCKETS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.attach.buckets).collect();
        metric.encode_histogram::<[(&str, &str); 0]>(self.attach.sum, self.attach.count, &buckets, None)
    }
}

/// How many there are of each tier.
fn by_tier<'t>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    of: impl Iterator<Item = &'t str>,
) -> fmt::Result {
    let mut tiers: BTreeMap<&str, i64> = BTreeMap::new();
    for tier in of {
        *tiers.entry(tier).or_default() += 1;
    }
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (tier, n) in tiers {
        ConstGauge::new(n).encode(metric.encode_family(&[("tier", tier)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}
