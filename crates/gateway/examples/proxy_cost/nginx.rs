//! nginx as a plain proxy before the same upstreams, if it is installed.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::Process;
use crate::{Result, System};

/// What it calls itself.
pub(crate) fn version() -> String {
    let output = Command::new("nginx").arg("-v").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    text.unwrap_or_default().trim().trim_start_matches("nginx version: ").to_owned()
}

/// Starts it; `None` if it is not installed.
pub(crate) fn start(upstreams: &[SocketAddr], workers: usize) -> Result<Option<System>> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    // A port that was free a moment ago: nginx cannot take one by itself and say which.
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let dir = std::env::temp_dir().join(format!("kvroute-proxy-cost-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config(upstreams, workers, addr, &dir.to_string_lossy())?)?;
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let system = System {
        name: "nginx",
        addr,
        process: Process { child, addrs: vec![addr], dir: Some(dir) },
    };
    for _ in 0..500 {
        if TcpStream::connect(addr).is_ok() {
            return Ok(Some(system));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err("nginx did not start to listen".into())
}

fn config(upstreams: &[SocketAddr], workers: usize, addr: SocketAddr, dir: &str) -> Result<String> {
    let mut servers = String::new();
    for upstream in upstreams {
        writeln!(servers, "    server {upstream};")?;
    }
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(temporary, "  {kind}_temp_path {dir}/{kind};")?;
    }
    Ok(format!(
        "daemon off;\nworker_processes {workers};\npid {dir}/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n{temporary}  upstream instances {{\n    least_conn;\n{servers}    \
         keepalive 256;\n    keepalive_requests 1000000000;\n  }}\n  server {{\n    \
         listen {addr} reuseport backlog=4096;\n    keepalive_requests 1000000000;\n    \
         client_body_buffer_size 256k;\n    client_max_body_size 20m;\n    location / {{\n      \
         proxy_pass http://instances;\n      proxy_http_version 1.1;\n      \
         proxy_set_header Connection \"\";\n      proxy_buffering off;\n    }}\n  }}\n}}\n"
    ))
}
