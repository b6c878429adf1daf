//! What a controller tells by itself, and how it is.

use std::sync::atomic::Ordering;

use nvme::admin::{Command, SetFeatures};
use nvme::event::{Event, EventType};
use nvme::feature::{AsynchronousEvents, Feature};
use nvme::log::{CHANGED_NAMESPACES_MAX, ErrorEntry, LogPage};

use super::{End, Session};
use crate::admin::{AdminError, Data};
use crate::scan;

/// Entries of the error log that are read.
const ERROR_ENTRIES: usize = 16;

/// The health events that every controller has.
const HEALTH_EVENTS: AsynchronousEvents = AsynchronousEvents::SPARE
    .union(AsynchronousEvents::TEMPERATURE)
    .union(AsynchronousEvents::RELIABILITY)
    .union(AsynchronousEvents::READ_ONLY)
    .union(AsynchronousEvents::BACKUP);

impl Session<'_> {
    pub(super) async fn keep_health(&self) {
        loop {
            self.read_health().await;
            self.time.sleep(self.options.health_interval).await;
        }
    }

    async fn read_health(&self) {
        match scan::health(&self.admin).await {
            Ok(health) => self.shared.healthy(&health),
            Err(AdminError::Timeout(_)) => {
                self.end(End::Reset("it does not answer on its admin queue".to_owned()));
            }
            Err(_) => {}
        }
    }

    /// Says which events are wanted.
    pub(super) async fn want_events(
        &self,
        controller: &scan::Controller,
    ) -> Result<(), AdminError> {
        let can = AsynchronousEvents::from_bits_truncate(controller.identify.oaes.get());
        let wanted = AsynchronousEvents::NAMESPACE | AsynchronousEvents::FIRMWARE;
        let choice = HEALTH_EVENTS | can & wanted;
        let set = SetFeatures::new(Feature::AsynchronousEvents, choice.bits());
        match self.admin.command(Command::SetFeatures(set).to_sqe(0), Data::None).await {
            Err(AdminError::Status(status)) => {
                let name = self.shared.name();
                tracing::debug!("{name}: does not take the choice of events: {status}");
                Ok(())
            }
            done => done.map(drop),
        }
    }

    pub(super) async fn hear_events(&self) {
        loop {
            let ask = Command::AsynchronousEventRequest.to_sqe(0);
            match self.admin.command_within(None, ask, Data::None).await {
                Ok(answer) => self.heard(answer.completion.dw0()).await,
                // More of them than it takes, or they were aborted: the others are enough.
                Err(_) => return,
            }
        }
    }

    async fn heard(&self, dw0: u32) {
        self.shared.counts.events.fetch_add(1, Ordering::Relaxed);
        let Ok(event) = Event::from_dw0(dw0) else { return };
        let name = self.shared.name();
        match event.event_type {
            EventType::Health => {
                self.read_health().await;
                let warning = self.shared.health().map_or(0, |health| health.critical_warning);
                tracing::warn!(
                    "{name}: health event {:#04x}; critical warning {warning:#04x}",
                    event.information
                );
            }
            EventType::Error => {
                tracing::error!("{name}: error event {:#04x}", event.information);
                self.read_errors().await;
            }
            EventType::Notice if event == Event::NAMESPACE_CHANGED => {
                // Reading it has the next change told of.
                let read = scan::log_page(
                    &self.admin,
                    LogPage::ChangedNamespaces,
                    CHANGED_NAMESPACES_MAX * 4,
                );
                if read.await.is_ok() {
                    tracing::info!("{name}: its namespaces have changed");
                    self.rescan().await;
                }
            }
            EventType::Notice if event == Event::FIRMWARE_ACTIVATION => {
                tracing::info!("{name}: it begins to activate a firmware");
                let _ = scan::log_page(&self.admin, LogPage::FirmwareSlots, 512).await;
            }
            _ => tracing::info!("{name}: event {dw0:#010x}"),
        }
    }

    async fn read_errors(&self) {
        let entries = self
            .shared
            .identify()
            .map_or(1, |identify| usize::from(identify.elpe) + 1)
            .min(ERROR_ENTRIES);
        let len = entries * size_of::<ErrorEntry>();
        if let Ok(page) = scan::log_page(&self.admin, LogPage::ErrorInformation, len).await {
            self.shared.erred(page);
        }
    }
}
