//! SMART / Health Information log page (02h).

use crate::codes::{layout, wire};
use zerocopy::little_endian::{U16, U32, U128};

bitflags::bitflags! {
    /// Critical Warning.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct CriticalWarning: u8 {
        /// Available spare below the threshold.
        const SPARE = 1 << 0;
        /// Temperature beyond a threshold.
        const TEMPERATURE = 1 << 1;
        /// Reliability degraded by media or internal errors.
        const RELIABILITY = 1 << 2;
        /// All media are read-only.
        const READ_ONLY = 1 << 3;
        /// Volatile memory backup failed.
        const BACKUP = 1 << 4;
        /// Persistent memory region read-only or unreliable.
        const PERSISTENT_MEMORY = 1 << 5;
    }
}

wire! {
    /// SMART / Health Information.
    pub struct Health {
        /// Critical Warning; see [`CriticalWarning`].
        pub critical_warning: u8,
        /// Composite Temperature in kelvin.
        pub composite_temperature: U16,
        /// Available Spare, percent.
        pub available_spare: u8,
        /// Available Spare Threshold, percent.
        pub available_spare_threshold: u8,
        /// Percentage Used; may exceed 100.
        pub percentage_used: u8,
        /// Endurance Group Critical Warning Summary.
        pub endurance_group_warning: u8,
        /// Reserved.
        pub reserved7: [u8; 25],
        /// Data Units Read: thousands of 512 bytes, rounded up.
        pub data_units_read: U128,
        /// Data Units Written: thousands of 512 bytes, rounded up.
        pub data_units_written: U128,
        /// Host Read Commands.
        pub host_read_commands: U128,
        /// Host Write Commands.
        pub host_write_commands: U128,
        /// Controller Busy Time, minutes.
        pub controller_busy_time: U128,
        /// Power Cycles.
        pub power_cycles: U128,
        /// Power On Hours.
        pub power_on_hours: U128,
        /// Unsafe Shutdowns.
        pub unsafe_shutdowns: U128,
        /// Media and Data Integrity Errors.
        pub media_errors: U128,
        /// Number of Error Information Log Entries over the life of the controller.
        pub error_log_entries: U128,
        /// Warning Composite Temperature Time, minutes.
        pub warning_temperature_time: U32,
        /// Critical Composite Temperature Time, minutes.
        pub critical_temperature_time: U32,
        /// Temperature Sensor 1..8 in kelvin; 0 for none.
        pub temperature_sensors: [U16; 8],
        /// Thermal Management Temperature 1 and 2 Transition Count.
        pub thermal_transitions: [U32; 2],
        /// Total Time For Thermal Management Temperature 1 and 2, seconds.
        pub thermal_time: [U32; 2],
        /// Reserved.
        pub reserved232: [u8; 280],
    }
}
layout!(
    Health, 512,
    critical_warning @ 0, composite_temperature @ 1, available_spare @ 3, percentage_used @ 5,
    data_units_read @ 32, data_units_written @ 48, host_read_commands @ 64,
    host_write_commands @ 80, controller_busy_time @ 96, power_cycles @ 112, power_on_hours @ 128,
    unsafe_shutdowns @ 144, media_errors @ 160, error_log_entries @ 176,
    warning_temperature_time @ 192, temperature_sensors @ 200, thermal_transitions @ 216,
    thermal_time @ 224, reserved232 @ 232,
);

impl Health {
    /// Data units for a number of bytes: thousands of 512 bytes, rounded up.
    pub fn data_units(bytes: u128) -> U128 {
        U128::new(bytes.div_ceil(512_000))
    }
}
