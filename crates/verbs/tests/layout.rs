//! Holds the hand-written declarations against the system's own headers, where there are a C compiler and headers.

use std::io::Write;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;

use verbs::sys;

/// What is compared: an expression in C, and its value here.
fn facts() -> Vec<(String, usize)> {
    let mut facts = Vec::new();
    macro_rules! offsets {
        ($rust:ident, $c:literal: $($field:ident $(as $c_field:literal)?),* $(,)?) => {$(
            #[allow(unused_mut, unused_assignments)]
            let mut name = stringify!($field);
            $(name = $c_field;)?
            facts.push((format!("offsetof({}, {name})", $c), offset_of!(sys::$rust, $field)));
        )*};
    }
    macro_rules! whole {
        ($($rust:ident $c:literal),*) => {$(
            facts.push((format!("sizeof({})", $c), size_of::<sys::$rust>()));
            facts.push((format!("_Alignof({})", $c), align_of::<sys::$rust>()));
        )*};
    }
    macro_rules! constants {
        ($($rust:ident $c:literal),* $(,)?) => {$(
            facts.push((format!("(size_t)({})", $c), usize::try_from(sys::$rust).unwrap()));
        )*};
    }
    whole!(Context "struct ibv_context", Td "struct ibv_td", TdInitAttr "struct ibv_td_init_attr");
    whole!(ParentDomainInitAttr "struct ibv_parent_domain_init_attr");
    whole!(Pd "struct ibv_pd", Mr "struct ibv_mr", CompChannel "struct ibv_comp_channel");
    whole!(Sge "struct ibv_sge", SendWr "struct ibv_send_wr", RecvWr "struct ibv_recv_wr");
    // Not of ibv_port_attr: it grows, and the function that we call fills in what all versions of it begin with.
    whole!(Wc "struct ibv_wc", DeviceAttr "struct ibv_device_attr");
    whole!(QpCap "struct ibv_qp_cap", QpInitAttr "struct ibv_qp_init_attr", QpAttr "struct ibv_qp_attr");
    whole!(AhAttr "struct ibv_ah_attr", Gid "union ibv_gid", SrqInitAttr "struct ibv_srq_init_attr");
    whole!(SrqAttr "struct ibv_srq_attr", AsyncEvent "struct ibv_async_event");
    whole!(ContextOps "struct ibv_context_ops", EventChannel "struct rdma_event_channel");
    whole!(ConnParam "struct rdma_conn_param");
    offsets!(ContextOps, "struct ibv_context_ops": poll_cq, req_notify_cq, post_srq_recv, post_send, post_recv);
    offsets!(Context, "struct ibv_context": device, ops, cmd_fd, async_fd, num_comp_vectors, abi_compat);
    offsets!(ParentDomainInitAttr, "struct ibv_parent_domain_init_attr": pd, td, comp_mask, alloc, free, pd_context);
    offsets!(Pd, "struct ibv_pd": context, handle);
    offsets!(Mr, "struct ibv_mr": context, pd, addr, length, handle, lkey, rkey);
    offsets!(CompChannel, "struct ibv_comp_channel": context, fd, refcnt);
    offsets!(Cq, "struct ibv_cq": context, channel, cq_context, handle, cqe);
    offsets!(Srq, "struct ibv_srq": context, srq_context, pd, handle);
    offsets!(Qp, "struct ibv_qp": context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type);
    offsets!(Sge, "struct ibv_sge": addr, length, lkey);
    offsets!(SendWr, "struct ibv_send_wr": wr_id, next, sg_list, num_sge, opcode, send_flags, invalidate_rkey,
        remote_addr as "wr.rdma.remote_addr", rkey as "wr.rdma.rkey", rest as "qp_type");
    offsets!(RecvWr, "struct ibv_recv_wr": wr_id, next, sg_list, num_sge);
    offsets!(Wc, "struct ibv_wc": wr_id, status, opcode, vendor_err, byte_len, invalidated_rkey, qp_num, src_qp,
        wc_flags, pkey_index, slid, sl, dlid_path_bits);
    offsets!(DeviceAttr, "struct ibv_device_attr": fw_ver, node_guid, max_mr_size, vendor_id, vendor_part_id, max_qp,
        max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom,
        max_qp_init_rd_atom, max_srq, max_srq_wr, max_srq_sge, max_pkeys, phys_port_cnt);
    offsets!(PortAttr, "struct ibv_port_attr": state, active_mtu, gid_tbl_len, max_msg_sz, phys_state, link_layer, flags,
        port_cap_flags2);
    offsets!(QpInitAttr, "struct ibv_qp_init_attr": qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    offsets!(AhAttr, "struct ibv_ah_attr": dgid as "grh.dgid", flow_label as "grh.flow_label",
        traffic_class as "grh.traffic_class", dlid, sl, src_path_bits, static_rate, is_global, port_num);
    offsets!(QpAttr, "struct ibv_qp_attr": qp_state, path_mtu, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap,
        ah_attr, alt_ah_attr, pkey_index, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout,
        retry_cnt, rnr_retry, alt_timeout, rate_limit);
    offsets!(SrqInitAttr, "struct ibv_srq_init_attr": srq_context, attr);
    offsets!(AsyncEvent, "struct ibv_async_event": element, event_type);
    offsets!(CmId, "struct rdma_cm_id": verbs, channel, context, qp, src_addr as "route.addr.src_storage",
        dst_addr as "route.addr.dst_storage", ib_addr as "route.addr.addr", path_rec as "route.path_rec",
        num_paths as "route.num_paths", ps, port_num);
    offsets!(ConnParam, "struct rdma_conn_param": private_data, private_data_len, responder_resources, initiator_depth,
        flow_control, retry_count, rnr_retry_count, srq, qp_num);
    offsets!(CmEvent, "struct rdma_cm_event": id, listen_id, event, status, conn as "param.conn");
    constants!(ACCESS_LOCAL_WRITE "IBV_ACCESS_LOCAL_WRITE", ACCESS_REMOTE_WRITE "IBV_ACCESS_REMOTE_WRITE",
        ACCESS_REMOTE_READ "IBV_ACCESS_REMOTE_READ", WR_RDMA_WRITE "IBV_WR_RDMA_WRITE", WR_SEND "IBV_WR_SEND",
        WR_RDMA_READ "IBV_WR_RDMA_READ", WR_SEND_WITH_INV "IBV_WR_SEND_WITH_INV", SEND_FENCE "IBV_SEND_FENCE",
        SEND_SIGNALED "IBV_SEND_SIGNALED", SEND_INLINE "IBV_SEND_INLINE",
        WC_SEND "IBV_WC_SEND", WC_RDMA_WRITE "IBV_WC_RDMA_WRITE", WC_RDMA_READ "IBV_WC_RDMA_READ",
        WC_RECV "IBV_WC_RECV", WC_WITH_INV "IBV_WC_WITH_INV", QPT_RC "IBV_QPT_RC", QPS_RESET "IBV_QPS_RESET",
        QPS_INIT "IBV_QPS_INIT", QPS_RTR "IBV_QPS_RTR", QPS_RTS "IBV_QPS_RTS",
        QPS_ERR "IBV_QPS_ERR", QP_STATE "IBV_QP_STATE", QP_ACCESS_FLAGS "IBV_QP_ACCESS_FLAGS",
        QP_MAX_QP_RD_ATOMIC "IBV_QP_MAX_QP_RD_ATOMIC",
        QP_MIN_RNR_TIMER "IBV_QP_MIN_RNR_TIMER", QP_MAX_DEST_RD_ATOMIC "IBV_QP_MAX_DEST_RD_ATOMIC",
        SRQ_LIMIT "IBV_SRQ_LIMIT", DEVICE_MEM_MGT_EXTENSIONS "IBV_DEVICE_MEM_MGT_EXTENSIONS",
        PORT_DOWN "IBV_PORT_DOWN", PORT_ACTIVE "IBV_PORT_ACTIVE", LINK_LAYER_ETHERNET "IBV_LINK_LAYER_ETHERNET");
    constants!(EVENT_CQ_ERR "IBV_EVENT_CQ_ERR", EVENT_QP_FATAL "IBV_EVENT_QP_FATAL",
        EVENT_QP_REQ_ERR "IBV_EVENT_QP_REQ_ERR", EVENT_QP_ACCESS_ERR "IBV_EVENT_QP_ACCESS_ERR",
        EVENT_COMM_EST "IBV_EVENT_COMM_EST", EVENT_DEVICE_FATAL "IBV_EVENT_DEVICE_FATAL",
        EVENT_PORT_ACTIVE "IBV_EVENT_PORT_ACTIVE",
        EVENT_PORT_ERR "IBV_EVENT_PORT_ERR", EVENT_SRQ_ERR "IBV_EVENT_SRQ_ERR",
        EVENT_SRQ_LIMIT_REACHED "IBV_EVENT_SRQ_LIMIT_REACHED",
        EVENT_QP_LAST_WQE_REACHED "IBV_EVENT_QP_LAST_WQE_REACHED", EVENT_GID_CHANGE "IBV_EVENT_GID_CHANGE",
        CM_EVENT_ADDR_RESOLVED "RDMA_CM_EVENT_ADDR_RESOLVED", CM_EVENT_ADDR_ERROR "RDMA_CM_EVENT_ADDR_ERROR",
        CM_EVENT_ROUTE_RESOLVED "RDMA_CM_EVENT_ROUTE_RESOLVED", CM_EVENT_ROUTE_ERROR "RDMA_CM_EVENT_ROUTE_ERROR",
        CM_EVENT_CONNECT_REQUEST "RDMA_CM_EVENT_CONNECT_REQUEST",
        CM_EVENT_CONNECT_RESPONSE "RDMA_CM_EVENT_CONNECT_RESPONSE",
        CM_EVENT_CONNECT_ERROR "RDMA_CM_EVENT_CONNECT_ERROR", CM_EVENT_UNREACHABLE "RDMA_CM_EVENT_UNREACHABLE",
        CM_EVENT_REJECTED "RDMA_CM_EVENT_REJECTED", CM_EVENT_ESTABLISHED "RDMA_CM_EVENT_ESTABLISHED",
        CM_EVENT_DISCONNECTED "RDMA_CM_EVENT_DISCONNECTED",
        CM_EVENT_DEVICE_REMOVAL "RDMA_CM_EVENT_DEVICE_REMOVAL", CM_EVENT_ADDR_CHANGE "RDMA_CM_EVENT_ADDR_CHANGE",
        CM_EVENT_TIMEWAIT_EXIT "RDMA_CM_EVENT_TIMEWAIT_EXIT", PS_TCP "RDMA_PS_TCP", OPTION_ID "RDMA_OPTION_ID",
        OPTION_ID_REUSEADDR "RDMA_OPTION_ID_REUSEADDR", OPTION_ID_AFONLY "RDMA_OPTION_ID_AFONLY", ABI_IS_EXTENDED "__VERBS_ABI_IS_EXTENDED");
    facts.extend(table_before_the_context());
    facts
}

/// It is declared from the middle on, so its offsets are held against each other.
fn table_before_the_context() -> Vec<(String, usize)> {
    let first = "offsetof(struct verbs_context, alloc_parent_domain)";
    let fields = [
        ("alloc_parent_domain", offset_of!(sys::VerbsContext, alloc_parent_domain)),
        ("dealloc_td", offset_of!(sys::VerbsContext, dealloc_td)),
        ("alloc_td", offset_of!(sys::VerbsContext, alloc_td)),
        ("sz", offset_of!(sys::VerbsContext, sz)),
        ("context", offset_of!(sys::VerbsContext, context)),
    ];
    let fields = fields
        .map(|(field, ours)| (format!("offsetof(struct verbs_context, {field}) - {first}"), ours));
    let all = format!("sizeof(struct verbs_context) - {first}");
    fields.into_iter().chain([(all, size_of::<sys::VerbsContext>())]).collect()
}

/// Says that a test was left out; `tools/test` counts these lines. Past the capture of what tests print.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

#[test]
fn declarations_agree_with_the_headers() {
    let headers = ["/usr/include/infiniband/verbs.h", "/usr/include/rdma/rdma_cma.h"];
    if let Some(missing) = headers.iter().find(|header| !Path::new(header).exists()) {
        skip(&format!("{missing} is missing (Debian: libibverbs-dev librdmacm-dev)"));
        return;
    }
    let facts = facts();
    let mut source = String::from(
        "#include <stdio.h>\n#include <stddef.h>\n#include <rdma/rdma_cma.h>\nint main(void) {\n",
    );
    for (expression, _) in &facts {
        source.push_str("printf(\"%zu\\n\", ");
        source.push_str(expression);
        source.push_str(");\n");
    }
    source.push_str("return 0; }\n");
    let directory = tempfile::tempdir().unwrap();
    let (code, program) = (directory.path().join("layout.c"), directory.path().join("layout"));
    std::fs::write(&code, source).unwrap();
    let compiled = match Command::new("cc").arg("-w").arg(&code).arg("-o").arg(&program).output() {
        Ok(compiled) => compiled,
        Err(error) => {
            skip(&format!("no C compiler ({error})"));
            return;
        }
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let values: Vec<usize> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(values.len(), facts.len());
    let wrong: Vec<_> =
        facts.iter().zip(&values).filter(|((_, ours), theirs)| ours != *theirs).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Every function is there in every version asked for, or the error says what to install.
#[test]
#[allow(clippy::print_stderr, reason = "says what it found")]
fn the_libraries_open_or_say_what_is_missing() {
    match verbs::Library::open() {
        Ok(library) => {
            let devices = library.devices().map(|devices| devices.len());
            eprintln!("libraries opened; devices: {devices:?}");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("install") && !text.contains('\n'), "{text}");
        }
    }
}
