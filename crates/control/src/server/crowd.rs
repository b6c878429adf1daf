//! Bounds how many calls of one method are under way, whoever asked for them.
//!
//! A call goes on when its client is gone, so a method that hangs collects calls for as long as clients come again
//! and ask again. The bound is on each method by itself: the hung one is refused in the end, the others are not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use serde_json::Value;

use crate::jsonrpc::{Calling, Methods, RpcError};

/// Methods, of which each is called so many times at once at most.
pub(super) struct Crowd {
    methods: Arc<dyn Methods>,
    most: u32,
    under_way: Mutex<HashMap<String, u32>>,
}

/// One call under way.
struct One<'a> {
    crowd: &'a Crowd,
    method: &'a str,
}

impl Crowd {
    pub(super) fn new(methods: Arc<dyn Methods>, most: u32) -> Crowd {
        Crowd { methods, most, under_way: Mutex::default() }
    }

    fn one<'a>(&'a self, method: &'a str) -> Option<One<'a>> {
        let mut under_way = self.under_way();
        match under_way.get_mut(method) {
            Some(count) if *count >= self.most => return None,
            Some(count) => *count = count.saturating_add(1),
            None => drop(under_way.insert(String::from(method), 1)),
        }
        Some(One { crowd: self, method })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Methods for Crowd {
    fn call<'a>(&'a self, method: &'a str, params: Value) -> Calling<'a> {
        Box::pin(async move {
            let Some(_one) = self.one(method) else {
                let most = self.most;
                let why = format!("Device or resource busy: {most} such calls are under way");
                return Err(RpcError::errno(Errno::BUSY.raw_os_error(), why));
            };
            self.methods.call(method, params).await
        })
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        let mut under_way = self.crowd.under_way();
        if let Some(count) = under_way.get_mut(self.method) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                under_way.remove(self.method);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    struct Hang;

    impl Methods for Hang {
        fn call<'a>(&'a self, method: &'a str, _params: Value) -> Calling<'a> {
            match method {
                "hang" => Box::pin(std::future::pending()),
                _ => Box::pin(async { Ok(Value::Null) }),
            }
        }
    }

    #[test]
    fn a_hung_method_is_refused_and_no_other() {
        let crowd = Crowd::new(Arc::new(Hang), 2);
        let mut hung = ["hang", "hang"].map(|method| crowd.call(method, Value::Null));
        for call in &mut hung {
            assert!(call.now_or_never().is_none());
        }
        let refused = crowd.call("hang", Value::Null).now_or_never().unwrap().unwrap_err();
        assert!(refused.code == -16 && refused.message.contains("2 such calls"), "{refused}");
        assert!(crowd.call("other", Value::Null).now_or_never().unwrap().is_ok());
        drop(hung);
        assert!(crowd.call("hang", Value::Null).now_or_never().is_none(), "there is room again");
        assert!(crowd.under_way().is_empty(), "and nothing is kept of what is over");
    }
}
