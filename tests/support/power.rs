//! A file system whose power can be cut, for system tests: ext4 in a file, on a loop device.
//!
//! Cutting tells ext4 to go down without writing its journal, so what was fsynced before is there after
//! [`PowerCut::remount`], and what was not may be gone. From the cut on, writes and fsyncs fail with
//! EIO: that is also the test of a failing disk, and a small one is the test of a full one. [`PowerCut::fail`]
//! makes the device under it fail instead: writes go into the page cache, and it is their fsync that ends with
//! EIO. [`PowerCut::stall`] makes it slow.
//!
//! Needs root, Linux, and mkfs.ext4, losetup, mount and umount; panics, saying so, without them.

#![allow(dead_code)] // each test file uses a part of it

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the last users of the file system may take to let go of it.
const BUSY_WAIT: Duration = Duration::from_secs(20);

/// `EXT4_IOC_SHUTDOWN`, and its flag to leave the journal unwritten.
const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
const SHUTDOWN_NOLOGFLUSH: u32 = 2;

/// `FIFREEZE` and `FITHAW`; their argument is not looked at.
const FREEZE: rustix::ioctl::Opcode = 0xc004_5877;
const THAW: rustix::ioctl::Opcode = 0xc004_5878;

/// `LOOP_SET_STATUS64` and `LOOP_GET_STATUS64`, what they take, and the field of it that bounds the device.
const SET_STATUS: rustix::ioctl::Opcode = 0x4c04;
const GET_STATUS: rustix::ioctl::Opcode = 0x4c05;
type LoopStatus = [u64; 29];
const SIZE_LIMIT: usize = 4;

/// What is left of a device that fails, in bytes; 0 is all of it.
const FAILING_BYTES: u64 = 4096;

/// A mounted file system. Unmounted and taken apart on drop; only its own mount point and loop device
/// are touched.
pub struct PowerCut {
    /// Holds the image and the mount point; removed last.
    dir: tempfile::TempDir,
    image: PathBuf,
    device: String,
    mount_point: PathBuf,
    mounted: bool,
    /// Images it has had.
    lives: u32,
}

impl PowerCut {
    pub fn new(size_mib: u64) -> PowerCut {
        assert!(
            rustix::process::geteuid().is_root(),
            "the power-loss tests mount a file system: run as root"
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("disk.img");
        let mount_point = dir.path().join("mnt");
        std::fs::create_dir(&mount_point).expect("the mount point");
        File::create(&image).and_then(|file| file.set_len(size_mib << 20)).expect("the image");
        // No room that only root may use: a full disk is full for everybody.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let device = attach(&image);
        let mut power = PowerCut { dir, image, device, mount_point, mounted: false, lives: 1 };
        power.mount();
        power
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Cuts the power. Whoever still uses the file system gets errors.
    pub fn cut(&self) {
        set::<SHUTDOWN, u32>(&self.mount_point, SHUTDOWN_NOLOGFLUSH);
    }

    /// The device fails to read and to write all but its first bytes, as one does that loses its cable; the
    /// file system learns it when it writes back.
    pub fn fail(&self) {
        self.limit(FAILING_BYTES);
    }

    /// The device is well again. Its file system may have given up: it needs [`PowerCut::cut`] (nobody writes
    /// to it any more) and [`PowerCut::remount`].
    pub fn mend(&self) {
        self.limit(0);
    }

    fn limit(&self, bytes: u64) {
        let device = File::open(&self.device).expect("the device can be opened");
        // SAFETY: the opcode writes a loop_info64, 232 bytes of integers, into what the getter holds.
        #[allow(unsafe_code)] // no safe wrapper knows this ioctl
        let status = unsafe {
            let get = rustix::ioctl::Getter::<GET_STATUS, LoopStatus>::new();
            rustix::ioctl::ioctl(&device, get)
        };
        let mut status = status.expect("a loop device tells its status");
        status[SIZE_LIMIT] = bytes;
        set::<SET_STATUS, LoopStatus>(Path::new(&self.device), status);
    }

    /// Makes whoever writes wait for that long: nothing gets to the disk meanwhile.
    pub fn stall(&self, time: Duration) {
        set::<FREEZE, u32>(&self.mount_point, 0);
        std::thread::sleep(time);
        set::<THAW, u32>(&self.mount_point, 0);
    }

    /// Takes space until so much is left; [`PowerCut::make_room`] gives it back.
    pub fn fill(&self, left: u64) {
        let status = rustix::fs::statvfs(&self.mount_point).expect("the file system is there");
        let taken = (status.f_bavail * status.f_frsize).saturating_sub(left);
        let ballast = File::create(self.ballast()).expect("the ballast");
        let allocate = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&ballast, allocate, 0, taken).expect("there is so much space");
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast is there");
        // Or it comes back with the power.
        let folder = File::open(&self.mount_point).expect("the folder can be opened");
        folder.sync_all().expect("what was removed stays removed");
    }

    fn ballast(&self) -> PathBuf {
        self.mount_point.join("ballast")
    }

    /// Brings the power back: what is mounted now is what was on the disk. Its users must have closed
    /// their files, or do so within seconds.
    pub fn remount(&mut self) {
        self.unmount();
        self.detach();
        if self.is_attached() {
            // Whoever copied the machine's mounts meanwhile (`ip netns exec` does) holds the old file system, and
            // with it what the kernel may yet write back to the old device: over the new one's head, if they
            // shared the image. The file system is shut down, so its journal explains a copy made at any time.
            self.lives += 1;
            let copy = self.dir.path().join(format!("disk-{}.img", self.lives));
            run(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy));
            std::fs::remove_file(&self.image).expect("the image is there");
            self.image = copy;
        }
        self.device = attach(&self.image);
        self.mount();
    }

    /// Whether the device still has the image.
    fn is_attached(&self) -> bool {
        let attached = run(Command::new("losetup")
            .args(["--noheadings", "--output", "NAME", "--associated"])
            .arg(&self.image));
        !attached.is_empty()
    }

    fn detach(&self) {
        if let Err(error) = try_run(Command::new("losetup").args(["--detach", &self.device])) {
            eprintln!("{error}");
        }
    }

    fn mount(&mut self) {
        run(Command::new("mount").args(["-t", "ext4", &self.device]).arg(&self.mount_point));
        self.mounted = true;
    }

    fn unmount(&mut self) {
        let give_up = Instant::now() + BUSY_WAIT;
        while let Err(error) = try_run(Command::new("umount").arg(&self.mount_point)) {
            assert!(Instant::now() < give_up, "still in use: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.mounted = false;
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        // A test that failed may still hold files open: a lazy unmount lets go once they are closed.
        if self.mounted
            && let Err(error) = try_run(Command::new("umount").arg("--lazy").arg(&self.mount_point))
        {
            eprintln!("{error}");
        }
        self.detach();
    }
}

/// An ioctl that takes a pointer to `T`.
fn set<const OPCODE: rustix::ioctl::Opcode, T>(path: &Path, value: T) {
    let file = File::open(path).expect("it can be opened");
    // SAFETY: the opcodes above take a pointer to a `T`, which lives through the call, and only read it.
    #[allow(unsafe_code)] // no safe wrapper knows these ioctls
    let result = unsafe { rustix::ioctl::ioctl(&file, rustix::ioctl::Setter::<OPCODE, T>::new(value)) };
    result.unwrap_or_else(|error| panic!("{}: ioctl {OPCODE:x}: {error}", path.display()));
}

fn attach(image: &Path) -> String {
    run(Command::new("losetup").args(["--find", "--show"]).arg(image))
}

/// Returns what it printed.
fn run(command: &mut Command) -> String {
    try_run(command).unwrap_or_else(|error| panic!("{error} (make test-deps installs what is needed)"))
}

fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
