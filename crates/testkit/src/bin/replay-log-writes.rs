//! Replays what the kernel's `dm-log-writes` recorded, so that a test can look at a disk as a loss of power would
//! have left it.
//!
//! The device-mapper target writes every request that reached the disk into a log, in the order in which a disk with a
//! volatile cache was obliged to keep it: a write enters the log once a flush (or its own FUA bit) has made it durable.
//! Applying the first `n` entries to an empty image gives the worst disk that the host can meet after a cut at that
//! point. Marks are put into the log by the test itself and say what had been acknowledged by then.
//!
//! The format is that of `drivers/md/dm-log-writes.c`: little-endian, a super block, then for each entry one sector with
//! its header (and a mark's text), followed by its data. Debian packages no program that reads it.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

const USAGE: &str = "usage: replay-log-writes list LOG
       replay-log-writes apply LOG IMAGE FROM TO

list   prints one line per entry: INDEX FLAGS SECTOR SECTORS [MARK]
apply  applies the entries FROM..TO (TO excluded) to the file IMAGE";

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;

/// How much is copied at a time: a bound on memory, whatever an entry says of its length.
const PIECE: usize = 1 << 20;

/// One request as it reached the disk, or a mark.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    flags: u64,
    /// In sectors of the log, on the logged disk.
    sector: u64,
    sectors: u64,
    /// Where the data of a write begins, in bytes from the start of the log.
    data: u64,
    /// The text of a mark; empty for a request.
    mark: String,
}

impl Entry {
    fn has_data(&self) -> bool {
        self.flags & (DISCARD | MARK) == 0
    }

    fn flag_names(&self) -> String {
        let names: Vec<&str> = [
            (FLUSH, "flush"),
            (FUA, "fua"),
            (DISCARD, "discard"),
            (MARK, "mark"),
            (METADATA, "metadata"),
        ]
        .iter()
        .filter(|(bit, _)| self.flags & bit != 0)
        .map(|&(_, name)| name)
        .collect();
        if names.is_empty() { "write".into() } else { names.join(",") }
    }
}

/// Reads the entries of a log one after the other.
struct Log<'a> {
    file: &'a File,
    sector_size: u64,
    remaining: u64,
    /// Of the next entry's header, in bytes.
    position: u64,
}

impl<'a> Log<'a> {
    fn open(file: &'a File) -> Result<Self> {
        let mut header = [0; 28];
        file.read_exact_at(&mut header, 0).context("cannot read the log's super block")?;
        let [magic, version, entries] = words(&header)?;
        ensure!(magic == MAGIC, "not a log of dm-log-writes: its magic number is {magic:#x}");
        ensure!(version == VERSION, "the log has version {version}, only {VERSION} is known");
        let sector_size =
            header.last_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
        ensure!(
            sector_size.is_power_of_two() && (512..=65536).contains(&sector_size),
            "the log's sector size is {sector_size}"
        );
        Ok(Self { file, sector_size, remaining: entries, position: sector_size })
    }

    fn bytes(&self, sectors: u64) -> Result<u64> {
        sectors.checked_mul(self.sector_size).context("an entry is longer than any disk")
    }

    fn read_entry(&mut self) -> Result<Entry> {
        let mut header = [0; 32];
        self.file.read_exact_at(&mut header, self.position)?;
        let [sector, sectors, flags, length] = words(&header)?;
        let mut mark = Vec::new();
        if flags & MARK != 0 {
            ensure!(length <= self.sector_size - 32, "a mark is {length} bytes long");
            mark.resize(usize::try_from(length)?, 0);
            self.file.read_exact_at(&mut mark, self.position + 32)?;
        }
        let data = self.position + self.sector_size;
        let mark = String::from_utf8_lossy(&mark).trim_end_matches('\0').to_owned();
        let entry = Entry { flags, sector, sectors, data, mark };
        let length = if entry.has_data() { self.bytes(sectors)? } else { 0 };
        self.position = data.checked_add(length).context("an entry is longer than any disk")?;
        Ok(entry)
    }
}

impl Iterator for Log<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let at = self.position;
        let entry =
            self.read_entry().with_context(|| format!("cannot read the entry at byte {at}"));
        if entry.is_err() {
            self.remaining = 0;
        }
        Some(entry)
    }
}

/// The first `N` little-endian words of a header.
fn words<const N: usize>(header: &[u8]) -> Result<[u64; N]> {
    let (chunks, _) = header.as_chunks();
    let chunks: &[[u8; 8]; N] = chunks.first_chunk().context("a header is cut short")?;
    Ok(chunks.map(u64::from_le_bytes))
}

fn list(log: &File, out: &mut dyn io::Write) -> Result<()> {
    for (index, entry) in Log::open(log)?.enumerate() {
        let entry = entry?;
        let line = format!(
            "{index} {} {} {} {}",
            entry.flag_names(),
            entry.sector,
            entry.sectors,
            entry.mark
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn apply(log: &File, image: &File, from: u64, to: u64) -> Result<()> {
    let entries = Log::open(log)?;
    let sector_size = entries.sector_size;
    let count = entries.remaining;
    if from > to || to > count {
        bail!("there is no range {from}..{to} in a log of {count} entries");
    }
    for (index, entry) in (0..to).zip(entries) {
        let entry = entry?;
        if index < from || entry.flags & MARK != 0 {
            continue;
        }
        let at = entry.sector.checked_mul(sector_size).context("an entry lies beyond any disk")?;
        let length =
            entry.sectors.checked_mul(sector_size).context("an entry is longer than any disk")?;
        let source = entry.has_data().then_some(entry.data);
        copy(log, source, image, at, length)
            .with_context(|| format!("cannot apply entry {index}"))?;
    }
    Ok(())
}

/// Copies `length` bytes of the log, or zeroes where there is no source (a discard), to the image.
fn copy(log: &File, source: Option<u64>, image: &File, at: u64, length: u64) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < length {
        let step = usize::try_from(length - done).unwrap_or(PIECE).min(PIECE);
        let (bytes, _) = piece.split_at_mut(step);
        if let Some(source) = source {
            log.read_exact_at(bytes, source + done)?;
        }
        image.write_all_at(bytes, at + done)?;
        done += u64::try_from(step)?;
    }
    Ok(())
}

fn open(path: &str) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {path}"))
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["list", log] => list(&open(log)?, &mut io::stdout().lock()),
        ["apply", log, image, from, to] => {
            let image = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(image)
                .with_context(|| format!("cannot open {image}"))?;
            apply(&open(log)?, &image, from.parse()?, to.parse()?)
        }
        _ => bail!(USAGE),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be told to whom standard error is closed.
            let _ = writeln!(io::stderr(), "replay-log-writes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    /// Writes a log as the kernel does.
    #[derive(Default)]
    struct Writer {
        entries: u64,
        body: Vec<u8>,
    }

    impl Writer {
        fn entry(mut self, flags: u64, sector: u64, sectors: u64, data: &[u8]) -> Self {
            let mut header = Vec::new();
            for word in [sector, sectors, flags, data.len() as u64] {
                header.extend(word.to_le_bytes());
            }
            if flags & MARK != 0 {
                header.extend(data);
            }
            header.resize(SECTOR, 0);
            self.body.extend(header);
            if flags & MARK == 0 {
                self.body.extend(data);
            }
            self.entries += 1;
            self
        }

        fn finish(self) -> File {
            let mut bytes = Vec::new();
            for word in [MAGIC, VERSION, self.entries] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(512_u32.to_le_bytes());
            bytes.resize(SECTOR, 0);
            bytes.extend(self.body);
            file_with(&bytes)
        }
    }

    fn file_with(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn sample() -> File {
        Writer::default()
            .entry(0, 1, 2, &[0x11; 2 * SECTOR])
            .entry(FLUSH, 0, 0, &[])
            .entry(MARK, 0, 0, b"half way")
            .entry(FUA | METADATA, 2, 1, &[0x22; SECTOR])
            .entry(DISCARD, 1, 1, &[])
            .finish()
    }

    fn image_after(to: u64) -> Vec<u8> {
        let image = file_with(&[0xff; 4 * SECTOR]);
        apply(&sample(), &image, 0, to).unwrap();
        let mut bytes = vec![0; 4 * SECTOR];
        image.read_exact_at(&mut bytes, 0).unwrap();
        // One byte tells a sector of these samples.
        bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn lists_each_entry_with_its_flags_and_mark() {
        let mut out = Vec::new();
        list(&sample(), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "0 write 1 2\n1 flush 0 0\n2 mark 0 0 half way\n3 fua,metadata 2 1\n4 discard 1 1\n"
        );
    }

    #[test]
    fn applies_up_to_the_cut_and_no_further() {
        assert_eq!(image_after(0), [0xff, 0xff, 0xff, 0xff]);
        assert_eq!(image_after(3), [0xff, 0x11, 0x11, 0xff]);
        assert_eq!(image_after(4), [0xff, 0x11, 0x22, 0xff]);
        assert_eq!(image_after(5), [0xff, 0x00, 0x22, 0xff]);
    }

    #[test]
    fn applies_in_steps_what_it_applies_at_once() {
        let image = file_with(&[0xff; 4 * SECTOR]);
        for step in 0..5 {
            apply(&sample(), &image, step, step + 1).unwrap();
        }
        let mut bytes = vec![0; 4 * SECTOR];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes.chunks(SECTOR).map(|s| s[0]).collect::<Vec<_>>(), image_after(5));
    }

    #[test]
    fn refuses_what_is_no_log_or_is_cut_short() {
        assert!(list(&file_with(&[0; 4096]), &mut Vec::new()).is_err());
        assert!(list(&file_with(b"short"), &mut Vec::new()).is_err());
        let short = sample();
        short.set_len(2048).unwrap();
        assert!(list(&short, &mut Vec::new()).is_err());
        let image = file_with(&[]);
        assert!(apply(&sample(), &image, 0, 6).is_err());
        assert!(apply(&sample(), &image, 3, 2).is_err());
    }

    #[test]
    fn refuses_lengths_that_overflow() {
        let log = Writer::default().entry(0, 0, u64::MAX / 2, &[]).finish();
        assert!(list(&log, &mut Vec::new()).is_err());
        let log = Writer::default().entry(DISCARD, u64::MAX, 1, &[]).finish();
        assert!(apply(&log, &file_with(&[]), 0, 1).is_err());
    }
}
