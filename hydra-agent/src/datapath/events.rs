//! The kernel's events as they come, to whoever listens.

use std::io;

use aya::maps::{Map, MapData, RingBuf};
use hydra_common::event::Event;
use hydra_common::names;
use tokio::sync::broadcast;
use zerocopy::FromBytes;

use super::error::DatapathError;
use super::raw;
use super::sync::Datapath;

/// Events handed on before other tasks get their turn.
const TURN: usize = 512;

/// The ring buffer, opened from its pin: what was written while no agent ran is still in it.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Datapath {
    /// The event stream. There must be one reader of it only.
    pub fn events(&self) -> Result<Events, DatapathError> {
        let failed = |e: aya::maps::MapError| DatapathError::Events(e.to_string());
        let map = MapData::from_pin(self.pins.maps.join(names::EVENTS)).map_err(failed)?;
        let ring = RingBuf::try_from(Map::from_map_data(map).map_err(failed)?).map_err(failed)?;
        Ok(Events { ring })
    }
}

impl Events {
    /// Hands every event to `listeners` until the task is dropped. No listeners is fine: the buffer is emptied all the same.
    pub async fn run(self, listeners: broadcast::Sender<Event>) -> io::Result<()> {
        let mut ring = raw::readable(self.ring)?;
        loop {
            let mut ready = ring.readable_mut().await?;
            let mut taken = 0;
            while taken < TURN {
                let Some(item) = ready.get_inner_mut().next() else { break };
                taken += 1;
                if let Ok((event, _)) = Event::read_from_prefix(&item) {
                    let _ = listeners.send(event);
                }
            }
            if taken < TURN {
                ready.clear_ready();
                // What came between the last look and the clearing has no wake-up of its own: look once more.
                while let Some(item) = ring.get_mut().next() {
                    if let Ok((event, _)) = Event::read_from_prefix(&item) {
                        let _ = listeners.send(event);
                    }
                }
            } else {
                tokio::task::yield_now().await;
            }
        }
    }
}
