//! Drops as they come: a JSON object on each line, until the reader or the agent goes.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hydra_common::event::Event;
use hydra_common::verdict::Verdict;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::App;
use super::extract::{Asked, Refusal};
use super::filter::Match;
use super::view::Names;
use super::wire::{Filter, FollowLine};
use crate::published::Published;

/// With `limit` the last so many come first.
pub(super) async fn follow(
    State(app): State<Arc<App>>,
    Asked(filter): Asked<Filter>,
) -> Result<Response, Refusal> {
    let earlier = filter.limit.unwrap_or(0);
    let names = app.memory.names(&app.state());
    let filter = Match::new(filter, true, &app.state(), &names)?;
    // In this order: what comes in between is in both, and told once.
    let events = app.handle.events.subscribe();
    let known = if earlier > 0 { app.memory.drops() } else { Vec::new() };
    let clocks = app.handle.reader.clocks();
    let rows = known.iter().rev().map(|event| names.drop(event, clocks)).filter(|row| filter.drop(row));
    let mut first: Vec<_> = rows.take(earlier).map(|row| FollowLine::Drop(Box::new(row))).collect();
    first.reverse();
    let newest = known.iter().map(|event| event.time).max().unwrap_or(0);
    let state = app.handle.state.clone();
    let reader = Following { app, events, filter, state, names, known, newest };
    let later = stream::unfold(reader, |mut reader| async { Some((reader.next().await?, reader)) });
    let lines = stream::iter(first).chain(later).map(|line| {
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(text))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// One reader.
struct Following {
    app: Arc<App>,
    events: broadcast::Receiver<Event>,
    filter: Match,
    state: watch::Receiver<Arc<Published>>,
    names: Names,
    /// What was told, or passed over, before.
    known: Vec<Event>,
    /// The newest time in it.
    newest: u64,
}

impl Following {
    async fn next(&mut self) -> Option<FollowLine> {
        loop {
            let event = tokio::select! {
                () = self.app.stop.cancelled() => return None,
                event = self.events.recv() => event,
            };
            match event {
                Ok(event) if Verdict::from_row(event.verdict) == Verdict::Allowed => {}
                Ok(event) if event.time <= self.newest && self.known.contains(&event) => {}
                Ok(event) => {
                    if self.state.has_changed().unwrap_or(false) {
                        self.names = self.app.memory.names(&self.state.borrow_and_update().clone());
                    }
                    let row = self.names.drop(&event, self.app.handle.reader.clocks());
                    if self.filter.drop(&row) {
                        return Some(FollowLine::Drop(Box::new(row)));
                    }
                }
                Err(RecvError::Lagged(lost)) => return Some(FollowLine::Lost { lost }),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
