//! Whether there is any XDP program in this kernel: where there is none no interface can have one, and nobody needs to list them all
//! once a second to see it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use super::raw;

/// The XDP programs that are known, and how far the kernel's programs have been looked through: it numbers them upwards.
#[derive(Debug, Default)]
pub struct Known {
    last: u32,
    xdp: BTreeSet<u32>,
}

impl Known {
    /// Whether there may be one: also where this process may not ask (CAP_SYS_ADMIN).
    pub fn any_xdp(&mut self) -> bool {
        self.look().map_or(true, |()| !self.xdp.is_empty())
    }

    fn look(&mut self) -> io::Result<()> {
        while let Some(id) = raw::next_program(self.last)? {
            if let Some(program) = raw::program(id)?
                && raw::program_info(program.as_fd())?.0.kind == raw::PROG_XDP
            {
                self.xdp.insert(id);
            }
            self.last = id;
        }
        let mut there = BTreeSet::new();
        for id in &self.xdp {
            there.extend(raw::program(*id)?.map(|_| *id));
        }
        self.xdp = there;
        Ok(())
    }
}
