//! `tidegate identify`: a controller and its namespaces, in words.

use crate::config::quantity::Size;
use crate::connection::ConnectionArgs;
use crate::output;
use clap::Args;
use host::{Controller, HostError};
use nvme::admin::{IDENTIFY_LENGTH, Identify};
use nvme::identify::{
    Cns, ControllerType, Descriptor, Descriptors, IdentifyController, IdentifyNamespace,
    OptionalAdminCommands, OptionalCommands,
};
use nvme::{Nqn, Status};
use serde::Serialize;
use std::fmt;

/// Describes a controller and the namespaces that it shows to this host.
#[derive(Debug, Clone, Args)]
pub(crate) struct IdentifyArgs {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// NQN of the subsystem
    #[arg(short = 'n', long = "nqn", visible_alias = "subsysnqn", value_name = "NQN", value_parser = Nqn::of_peer)]
    nqn: Nqn,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    controller: ControllerSummary,
    namespaces: Vec<NamespaceSummary>,
}

#[derive(Debug, Serialize)]
struct ControllerSummary {
    address: String,
    subnqn: String,
    cntlid: u16,
    #[serde(rename = "type")]
    kind: String,
    model: String,
    serial: String,
    firmware: String,
    version: String,
    max_transfer_bytes: Option<u64>,
    max_queue_entries: u32,
    in_capsule_bytes: u32,
    namespaces_max: u32,
    volatile_write_cache: bool,
    keep_alive_granularity_ms: u32,
    commands: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct NamespaceSummary {
    nsid: u32,
    size_bytes: u64,
    used_bytes: u64,
    block_bytes: u32,
    read_only: bool,
    uuid: Option<String>,
    nguid: Option<String>,
    eui64: Option<String>,
}

/// Prints what the controller says of itself.
pub(crate) fn run(args: &IdentifyArgs) -> anyhow::Result<()> {
    output::conclude(read(args), args.json)
}

fn read(args: &IdentifyArgs) -> anyhow::Result<Summary> {
    let mut controller = Controller::connect(args.connection.options(&args.nqn)?)?;
    let mut namespaces = Vec::new();
    for nsid in controller.namespaces()? {
        namespaces.push(NamespaceSummary::read(&mut controller, nsid)?);
    }
    let summary = Summary { controller: ControllerSummary::new(&controller), namespaces };
    // All has been read; how the controller ends changes nothing.
    let _ = controller.shutdown();
    Ok(summary)
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned()
}

fn hexadecimal(bytes: &[u8]) -> Option<String> {
    use fmt::Write;
    bytes.iter().any(|&byte| byte != 0).then(|| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    })
}

impl ControllerSummary {
    fn new(controller: &Controller) -> Self {
        let data: &IdentifyController = controller.data();
        let optional = OptionalCommands::from_bits_truncate(data.oncs.get());
        let admin = OptionalAdminCommands::from_bits_truncate(data.oacs.get());
        let io = [
            (OptionalCommands::COMPARE, "compare"),
            (OptionalCommands::WRITE_UNCORRECTABLE, "write uncorrectable"),
            (OptionalCommands::DATASET_MANAGEMENT, "dataset management"),
            (OptionalCommands::WRITE_ZEROES, "write zeroes"),
            (OptionalCommands::RESERVATIONS, "reservations"),
            (OptionalCommands::TIMESTAMP, "timestamp"),
            (OptionalCommands::VERIFY, "verify"),
            (OptionalCommands::COPY, "copy"),
        ];
        let mut commands: Vec<&'static str> = io
            .into_iter()
            .filter_map(|(bit, name)| optional.contains(bit).then_some(name))
            .collect();
        if data.fuses.get() & IdentifyController::FUSES_COMPARE_WRITE != 0 {
            commands.push("fused compare and write");
        }
        if admin.contains(OptionalAdminCommands::NAMESPACE_MANAGEMENT) {
            commands.push("namespace management");
        }
        Self {
            address: controller.address().to_string(),
            subnqn: text(&data.subnqn),
            cntlid: controller.cntlid(),
            kind: ControllerType::try_from(data.cntrltype)
                .map_or_else(|code| format!("unknown ({code})"), |kind| kind.to_string()),
            model: text(&data.mn),
            serial: text(&data.sn),
            firmware: text(&data.fr),
            version: controller.version().to_string(),
            max_transfer_bytes: controller.max_transfer(),
            max_queue_entries: u32::from(controller.capabilities().mqes) + 1,
            in_capsule_bytes: controller.in_capsule(),
            namespaces_max: data.nn.get(),
            volatile_write_cache: data.vwc & IdentifyController::VWC_PRESENT != 0,
            keep_alive_granularity_ms: u32::from(data.kas.get()) * 100,
            commands,
        }
    }
}

impl NamespaceSummary {
    fn read(controller: &mut Controller, nsid: u32) -> Result<Self, HostError> {
        let data = controller.namespace(nsid)?;
        let block_bytes =
            data.format().and_then(nvme::identify::LbaFormat::block_size).unwrap_or(0);
        let bytes = |blocks: u64| blocks.saturating_mul(u64::from(block_bytes));
        let mut summary = Self {
            nsid,
            size_bytes: bytes(data.nsze.get()),
            used_bytes: bytes(data.nuse.get()),
            block_bytes,
            read_only: data.nsattr & IdentifyNamespace::WRITE_PROTECTED != 0,
            uuid: None,
            nguid: hexadecimal(&data.nguid),
            eui64: hexadecimal(&data.eui64),
        };
        let mut list = [0; IDENTIFY_LENGTH];
        match controller.identify(Identify::new(Cns::NamespaceDescriptors), nsid, &mut list) {
            Ok(()) => {}
            // Controllers before 1.3 do not know the list.
            Err(HostError::Command { status, .. }) if status.same_code(Status::INVALID_FIELD) => {}
            Err(error) => return Err(error),
        }
        for descriptor in Descriptors::new(&list) {
            match descriptor {
                Descriptor::Uuid(uuid) => summary.uuid = Some(uuid.to_string()),
                Descriptor::Nguid(id) => summary.nguid = hexadecimal(&id),
                Descriptor::Eui64(id) => summary.eui64 = hexadecimal(&id),
                Descriptor::Csi(_) => {}
            }
        }
        Ok(summary)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = &self.controller;
        let transfer = controller
            .max_transfer_bytes
            .map_or_else(|| String::from("no limit"), |bytes| Size(bytes).to_string());
        let in_capsule = Size(u64::from(controller.in_capsule_bytes));
        let write_cache = if controller.volatile_write_cache { "volatile" } else { "none" };
        let commands = if controller.commands.is_empty() {
            String::from("none")
        } else {
            controller.commands.join(", ")
        };
        writeln!(f, "subsystem   {}", controller.subnqn)?;
        writeln!(f, "address     {}", controller.address)?;
        writeln!(
            f,
            "controller  {} ({}), NVMe {}",
            controller.cntlid, controller.kind, controller.version
        )?;
        writeln!(f, "model       {}", controller.model)?;
        writeln!(f, "serial      {}", controller.serial)?;
        writeln!(f, "firmware    {}", controller.firmware)?;
        writeln!(f, "transfer    {transfer} per command, {in_capsule} in a capsule")?;
        writeln!(f, "queue       {} entries", controller.max_queue_entries)?;
        writeln!(f, "write cache {write_cache}")?;
        writeln!(f, "optional    {commands}")?;
        writeln!(f)?;
        writeln!(
            f,
            "{:>6}  {:>12}  {:>12}  {:>6}  {:<10}  identity",
            "nsid", "size", "used", "block", "access"
        )?;
        for namespace in &self.namespaces {
            let access = if namespace.read_only { "read-only" } else { "read-write" };
            let names = [
                ("uuid", &namespace.uuid),
                ("nguid", &namespace.nguid),
                ("eui64", &namespace.eui64),
            ];
            let identity: Vec<String> = names
                .into_iter()
                .filter_map(|(kind, id)| Some(format!("{kind} {}", id.as_ref()?)))
                .collect();
            writeln!(
                f,
                "{:>6}  {:>12}  {:>12}  {:>6}  {access:<10}  {}",
                namespace.nsid,
                Size(namespace.size_bytes).to_string(),
                Size(namespace.used_bytes).to_string(),
                namespace.block_bytes,
                identity.join(", ")
            )?;
        }
        Ok(())
    }
}
