//! How QEMU boots an image.

use std::path::Path;

use crate::Image;

pub(crate) fn qemu(image: &Image, agent: &Path) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    [
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        // For a machine that can have one processor only, QEMU before 8.0 leaves the guest's memory barriers
        // out, and then a kick or a call gets lost now and then.
        "-smp",
        "1,maxcpus=2",
        "-M",
        "microvm,pit=off,pic=off,rtc=on,isa-serial=on",
        "-m",
        "192",
        "-kernel",
        &shown(&image.kernel),
        "-initrd",
        &shown(&image.files),
        "-append",
        &kernel_words(),
        "-chardev",
        &format!("socket,id=agent,path={},server=on,wait=off", shown(agent)),
        "-serial",
        "chardev:agent",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The kernel's command line. There is no timer to measure the processor's counter with, and without
/// acceleration the guest's is the host's.
fn kernel_words() -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let megahertz = processors.lines().find_map(|line| line.strip_prefix("cpu MHz"));
    let megahertz =
        megahertz.and_then(|line| line.trim_start_matches(['\t', ' ', ':']).parse().ok());
    let kilohertz = megahertz.unwrap_or(2000.0_f64) * 1000.0;
    format!(
        "console=null quiet loglevel=1 reboot=t panic=-1 mitigations=off random.trust_cpu=on \
         cryptomgr.notests tsc=reliable no_timer_check tsc_early_khz={kilohertz:.0}"
    )
}
