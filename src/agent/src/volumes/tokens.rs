//! Service account tokens of pods, asked for again before they end and not before
//! (pkg/kubelet/token/token_manager.go: at 80 % of their life, or after a day).

use super::{Token, TokenRequest, Tokens};
use crate::env::ObjectError;
use crate::sync::lock;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A token older than this is asked for again, in seconds.
const OLD: i64 = 24 * 3600;
/// Over how many seconds the pods of a node are spread.
const SPREAD: i64 = 10;

struct Kept {
    token: Token,
    refresh: Timestamp,
}

/// The tokens of this node's pods, in memory only.
#[derive(Clone)]
pub(super) struct Cache {
    source: Arc<dyn Tokens>,
    kept: Arc<Mutex<HashMap<TokenRequest, Kept>>>,
}

/// When a token is to be asked for again.
fn due(asked: Timestamp, token: &Token, request: &TokenRequest) -> Timestamp {
    let life = token.expires.as_second().saturating_sub(asked.as_second()).max(0);
    let wait = (life * 8 / 10).min(OLD);
    // The same pod always at the same time, two pods seldom.
    let sum: i64 = request.pod_uid.bytes().map(i64::from).sum();
    let wait = if wait > SPREAD * 2 { wait - sum % SPREAD } else { wait };
    Timestamp::from_second(asked.as_second().saturating_add(wait)).unwrap_or(token.expires)
}

impl Cache {
    pub(super) fn new(source: Arc<dyn Tokens>) -> Self {
        Cache { source, kept: Arc::default() }
    }

    /// The token for `request`, as fresh as it must be; one that cannot be renewed serves to its end.
    pub(super) async fn get(&self, request: &TokenRequest, now: Timestamp) -> Result<Token, ObjectError> {
        let kept = {
            let kept = lock(&self.kept);
            kept.get(request).map(|k| (k.token.clone(), k.refresh))
        };
        if let Some((token, _)) = kept.as_ref().filter(|(_, refresh)| now < *refresh) {
            return Ok(token.clone());
        }
        match (self.source.token(request).await, kept) {
            (Ok(token), _) => {
                let refresh = due(now, &token, request);
                let mut kept = lock(&self.kept);
                kept.insert(request.clone(), Kept { token: token.clone(), refresh });
                Ok(token)
            }
            (Err(error), Some((token, _))) if now < token.expires => {
                tracing::warn!(pod = request.pod_name, %error, "a token cannot be renewed yet");
                let again = Timestamp::from_second(now.as_second() + 60).unwrap_or(token.expires);
                let mut kept = lock(&self.kept);
                if let Some(kept) = kept.get_mut(request) {
                    kept.refresh = again;
                }
                Ok(token)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// When the first of a pod's tokens is to be renewed.
    pub(super) fn refresh(&self, uid: &str) -> Option<Timestamp> {
        let kept = lock(&self.kept);
        kept.iter().filter(|(request, _)| request.pod_uid == uid).map(|(_, kept)| kept.refresh).min()
    }

    /// Forgets a pod's tokens.
    pub(super) fn forget(&self, uid: &str) {
        let mut kept = lock(&self.kept);
        kept.retain(|request, _| request.pod_uid != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::sync::atomic::{AtomicI64, Ordering};

    /// Gives tokens of an hour, numbered; refuses the third.
    struct Numbered(AtomicI64);

    #[async_trait]
    impl Tokens for Numbered {
        async fn token(&self, request: &TokenRequest) -> Result<Token, ObjectError> {
            let n = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            if n == 3 {
                return Err(ObjectError {
                    kind: "token",
                    namespace: String::new(),
                    name: String::new(),
                    source: "no".into(),
                });
            }
            let expires = Timestamp::from_second(n * 3600 + request.seconds - 3600).unwrap();
            Ok(Token { text: n.to_string(), expires })
        }
    }

    #[tokio::test]
    async fn a_token_is_asked_for_again_at_80_percent_of_its_life_and_one_that_is_refused_serves_on() {
        let cache = Cache::new(Arc::new(Numbered(AtomicI64::new(0))));
        let request = TokenRequest {
            namespace: "n".into(),
            service_account: "s".into(),
            pod_name: "p".into(),
            pod_uid: "u".into(),
            audience: None,
            seconds: 3600,
        };
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(cache.refresh("u"), None);
        for (second, token) in [(0, "1"), (2000, "1"), (2880, "2"), (3600, "2"), (6800, "2"), (6870, "4")] {
            assert_eq!(cache.get(&request, at(second)).await.unwrap().text, token, "at {second} s");
        }
        assert!(cache.refresh("u").unwrap() > at(6870));
        cache.forget("u");
        assert_eq!(cache.refresh("u"), None);
    }
}
