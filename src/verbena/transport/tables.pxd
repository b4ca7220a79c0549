# What the transport keeps: queue-pair contexts, work queues, completion queues, paths, counters.  The one place
# where these are declared; the uncompiled twin reads this file (see _declarations.py).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.memory.windows cimport WindowTable

cdef enum:  # transport services
    RC = 0
    UC = 1
    RD = 2
    UD = 3
    RAW_IPV6 = 8  # raw datagrams (see `raw`): beyond the three bits that a packet could show
    RAW_ETHERTYPE = 9

cdef enum:  # queue-pair states, values as in Linux' enum ibv_qp_state
    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERROR = 6

cdef enum:  # operations of work requests, values as in Linux' enum ibv_wr_opcode
    WR_RDMA_WRITE = 0
    WR_RDMA_WRITE_WITH_IMM = 1
    WR_SEND = 2
    WR_SEND_WITH_IMM = 3
    WR_RDMA_READ = 4
    WR_ATOMIC_CMP_AND_SWP = 5
    WR_ATOMIC_FETCH_AND_ADD = 6
    WR_LOCAL_INV = 7
    WR_BIND_MW = 8
    WR_SEND_WITH_INV = 9
    WR_REG_MR = 32
    WR_DELAY = 64  # Verbena's own numbers, beyond Linux': delays what follows it
    WR_RESYNC = 65  # an end-to-end context's own request

cdef enum:  # flags of work requests, values as in Linux' enum ibv_send_flags
    FENCE = 1
    SIGNALED = 2
    SOLICITED = 4
    INLINE = 8

cdef enum:  # completions: enum ibv_wc_opcode, and flags enum ibv_wc_flags
    WC_SEND = 0
    WC_RDMA_WRITE = 1
    WC_RDMA_READ = 2
    WC_COMP_SWAP = 3
    WC_FETCH_ADD = 4
    WC_BIND_MW = 5
    WC_LOCAL_INV = 6
    WC_REG_MR = 10
    WC_DELAY = 64
    WC_RECV = 128
    WC_RECV_RDMA_WITH_IMM = 129
    WC_GRH = 1
    WC_WITH_IMM = 2
    WC_WITH_INV = 8

cdef enum:  # completion status, values as in errors.CompletionStatus
    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    LOC_RDD_VIOL_ERR = 14
    REM_INV_RD_REQ_ERR = 15
    REM_ABORT_ERR = 16
    INV_EECN_ERR = 17
    INV_EEC_STATE_ERR = 18
    GENERAL_ERR = 21

cdef enum:  # operation codes of packets, low five bits (IBA vol. 1, table 38)
    SEND_FIRST = 0
    SEND_MIDDLE = 1
    SEND_LAST = 2
    SEND_LAST_IMM = 3
    SEND_ONLY = 4
    SEND_ONLY_IMM = 5
    WRITE_FIRST = 6
    WRITE_MIDDLE = 7
    WRITE_LAST = 8
    WRITE_LAST_IMM = 9
    WRITE_ONLY = 10
    WRITE_ONLY_IMM = 11
    READ_REQUEST = 12
    READ_RESPONSE_FIRST = 13
    READ_RESPONSE_MIDDLE = 14
    READ_RESPONSE_LAST = 15
    READ_RESPONSE_ONLY = 16
    ACKNOWLEDGE = 17
    ATOMIC_ACKNOWLEDGE = 18
    COMPARE_SWAP = 19
    FETCH_ADD = 20
    RESYNC = 21
    SEND_LAST_INV = 22
    SEND_ONLY_INV = 23

cdef enum:  # AETH syndromes (IBA vol. 1, 9.7.5.1)
    AETH_ACK = 0x1F  # acknowledgement, no end-to-end credits
    AETH_RNR = 0x20
    AETH_NAK = 0x60
    NAK_SEQUENCE = 0
    NAK_INVALID_REQUEST = 1
    NAK_REMOTE_ACCESS = 2
    NAK_REMOTE_OPERATION = 3
    NAK_INVALID_RD_REQUEST = 4

cdef enum:  # what a queue pair is in the middle of receiving
    NOTHING_OPEN = 0
    SEND_OPEN = 1
    WRITE_OPEN = 2
    SKIPPING = 3  # unreliable connection: the rest of a message that lost a packet
    REFUSED = 4  # end-to-end context: the rest of a message that was refused

cdef enum:  # answers that wait to be sent
    ANSWER_READ = 0
    ANSWER_ATOMIC = 1
    ANSWER_ACK = 2

cdef enum:  # where a request of a reliable-datagram queue pair is
    LOAN_IDLE = 0  # on its queue only
    LOAN_WAITING = 1  # in the line of its end-to-end context, or behind one that is
    LOAN_LENT = 2  # being executed by the context
    LOAN_OVER = 3  # executed, or failed; completes when those before it have

cdef enum:  # reports to the software above, in `Core.reports`
    REPORT_CQ = 0  # a completion queue without handler has an event (b = 1), or what is awaited (b = 0); a = queue
    REPORT_ASYNC = 1  # an asynchronous event; a = its type (ASYNC_*), b = queue pair, queue or shared queue
    REPORT_VIOLATION = 2  # a packet with a wrong key; a = the port, see `NativeEngine.violations`
    REPORT_FAULT = 3  # pages to bring in, or that were missing; see `Engine.take_faults`, `Engine.page_errors`

cdef enum:  # wrong keys that packets show, by the numbers of the traps (IBA vol. 1, 14.2.5.1)
    VIOLATION_PKEY = 257
    VIOLATION_QKEY = 258

cdef enum:  # asynchronous events, values as in Linux' enum ibv_event_type
    ASYNC_CQ_ERR = 0
    ASYNC_QP_FATAL = 1
    ASYNC_QP_REQ_ERR = 2
    ASYNC_QP_ACCESS_ERR = 3
    ASYNC_COMM_EST = 4
    ASYNC_SQ_DRAINED = 5
    ASYNC_PATH_MIG = 6
    ASYNC_PATH_MIG_ERR = 7
    ASYNC_SRQ_LIMIT_REACHED = 15
    ASYNC_QP_LAST_WQE_REACHED = 16

cdef enum:  # path migration states, values as in Linux' enum ibv_mig_state (IBA vol. 1, 17.2.8.1)
    MIG_MIGRATED = 0
    MIG_REARM = 1
    MIG_ARMED = 2

cdef enum:  # places in Core.counters; their names are in state.COUNTERS, in the same order
    TX_PACKETS
    TX_BYTES
    RX_PACKETS
    RX_BYTES
    RX_ACCEPTED
    RX_DUPLICATE
    RX_OUT_OF_SEQUENCE
    TX_RETRANSMITTED
    TX_ACKS
    TX_NAKS
    TX_RNR_NAKS
    RX_NAKS
    RX_RNR_NAKS
    TIMEOUTS
    IDENT_SOLVED
    RX_CONGESTION
    READS_WITHDRAWN
    LOOPED_PACKETS
    DROP_SHORT
    DROP_LENGTH
    DROP_VERSION
    DROP_OPCODE
    DROP_ICRC
    DROP_IDENT
    DROP_NO_QP
    DROP_QP_STATE
    DROP_SERVICE
    DROP_PKEY
    DROP_QKEY
    DROP_SOURCE
    DROP_STALE_RESPONSE
    DROP_NO_RECEIVE
    DROP_TOO_LONG
    DROP_PROTECTION
    DROP_INVALID_REQUEST
    DROP_MESSAGE_BROKEN
    DROP_NO_ATOMIC_RESULT
    DROP_ANSWERS_FULL
    DROP_CQ_OVERFLOW
    DROP_TX_NO_ROUTE
    DROP_RX_SOCKET
    RX_REPLICATED
    PATH_MIGRATIONS
    TX_HELD
    DROP_LINK_VERSION
    DROP_LINK_LENGTH
    DROP_PORT_STATE
    DROP_VL15
    DROP_DLID
    DROP_RAW
    DROP_GRH_VERSION
    DROP_GRH_HEADER
    DROP_GRH_LENGTH
    DROP_DGID
    DROP_WRONG_PORT
    DROP_MULTICAST
    DROP_TX_PORT_DOWN
    DROP_NO_PROTOCOL
    DROP_IP_HEADER
    DROP_NO_EE
    DROP_RDD
    DROP_REORDER
    RX_REORDERED
    REORDER_OVERFLOW
    REORDER_EXPIRED
    TX_RESYNCS
    DROP_PAGE
    COUNTER_COUNT

cdef enum:
    PSN_MASK = 0xFFFFFF
    GRH_SPACE = 40  # in front of every datagram received (IBA vol. 1, 11.4.1.2)
    BURST_BYTES = 65000
    BURST_PACKETS = 64
    MAX_SGE = 16
    FLOWS = 256  # IPv4 sources whose identifications are followed
    MAX_STRIPES = 4  # paths of one connection at most
    REORDER_PACKETS = 256  # kept that came early, in each direction, and in flight at most: a power of two
    REORDER_BYTES = 4224  # of one of them at most, headers included

cdef struct Sge:
    uint64_t address
    uint64_t length
    uint32_t key

cdef struct SendWqe:
    uint64_t wr_id
    uint64_t length
    uint64_t remote_address
    uint64_t compare_add
    uint64_t swap
    uint32_t remote_key
    uint32_t immediate
    uint32_t remote_qpn
    uint32_t remote_qkey
    int32_t path
    uint32_t first_psn
    uint32_t packets
    uint8_t operation
    uint8_t flags
    uint8_t sges
    bint started  # has PSNs
    bint refused  # a bind or registration that failed, and waits to be the oldest

cdef struct Loan:  # what a request of a reliable-datagram queue pair needs beside its SendWqe
    uint32_t number  # of the end-to-end context that it names
    int32_t context  # its index, once in line
    uint32_t follower  # the queue pair's next request for the same context
    int32_t next_qp  # who stands behind it in the context's line; -1 = nobody
    uint32_t next_place
    uint32_t rnr_left
    uint8_t state
    uint8_t status
    bint followed

cdef struct Early:  # a packet that came before its turn
    uint32_t psn
    uint32_t length
    bint live
    uint8_t data[4224]

cdef struct RecvWqe:
    uint64_t wr_id
    uint64_t length
    uint8_t sges

cdef struct RecvQueue:
    RecvWqe *ring
    Sge *sge  # max_sge for each place of the ring
    uint32_t size
    uint32_t mask
    uint32_t max_sge
    uint32_t head  # posted so far
    uint32_t tail  # taken so far
    uint32_t limit  # shared queue: report when fewer are left; 0 = disarmed
    int32_t domain
    bint shared
    bint live

cdef struct Cqe:
    uint64_t wr_id
    uint64_t length
    uint32_t immediate
    uint32_t qpn
    uint32_t source_qpn
    uint32_t slid
    uint32_t ee
    uint8_t status
    uint8_t opcode
    uint8_t flags
    uint8_t sl
    uint8_t path_bits
    uint8_t port

cdef struct CompletionRing:
    Cqe *ring
    uint32_t size
    uint32_t mask
    uint32_t head  # written so far
    uint32_t tail  # read so far
    uint32_t users  # work queues that complete here
    uint8_t armed  # for which entries the program asked for an event: ARMED_* of notification.pxd
    bint awaited  # somebody waits for any entry; that is no event
    bint overrun
    bint live
    int32_t handler  # the vector that its events go to; -1 = none
    int32_t next_event  # the queue behind it in the vector's line; -1 = the last
    bint announced  # it stands in that line; of its event:
    uint8_t event_kind
    uint32_t event_qpn
    uint32_t merged
    uint64_t event_wr_id
    uint64_t event_ns

cdef struct Path:
    uint8_t prefix[64]  # masked headers for the ICRC, see wire.kernels.prefix
    uint8_t remote[16]  # GID
    uint32_t users
    uint32_t hop_limit
    uint32_t traffic_class
    uint32_t flow_label
    bint is_ip4
    bint loopback  # the destination is this adapter
    bint usable  # its port is not reported down
    uint8_t own[16]  # GID of the port that it leaves by
    # Native InfiniBand only (see `route`):
    uint8_t route[48]  # LRH, and GRH if there is one, as they are sent; the lengths change with each packet
    uint32_t front  # bytes in front of the BTH: 0 (RoCE), 8 (LRH) or 48 (LRH and GRH)
    uint32_t port  # the number of the port that packets leave from
    uint32_t loop_port  # the own port that they are for, when they stay inside
    uint32_t slid
    uint32_t dlid
    uint32_t sl
    uint32_t path_bits
    uint32_t sgid_index
    bint live
    uint8_t source[16]  # GID of the port that it leaves by

cdef struct Answer:
    uint8_t kind
    uint8_t syndrome
    bint started
    bint repeated  # to a duplicate request
    uint32_t psn  # of the next packet
    uint32_t last_psn
    uint32_t msn
    uint32_t key
    uint32_t destination  # queue pair that it goes to
    int32_t domain  # that the memory belongs to
    uint32_t qpn  # that it was asked for by
    uint64_t address
    uint64_t left
    uint64_t value

cdef struct AtomicResult:
    uint32_t psn
    uint64_t value
    bint live

cdef struct QueuePair:
    # identity and attributes
    uint32_t qpn
    uint32_t destination
    int32_t index
    int32_t domain
    int32_t send_cq
    int32_t recv_cq
    int32_t recv_queue
    int32_t path
    int32_t alt_path  # -1 = none
    int32_t held_next  # the next in the line of those that wait for the same port; -1 = the last
    uint32_t mtu
    uint32_t qkey
    uint32_t access
    uint32_t pkey
    uint32_t port  # native: the number of the port that it uses
    uint32_t held_port
    uint32_t alt_pkey
    uint64_t alt_timeout_ns
    uint64_t timeout_ns  # 0 = wait for ever
    uint64_t min_rnr_code
    uint32_t retry_count
    uint32_t rnr_retry
    uint32_t max_rd_atomic
    uint32_t max_dest_rd_atomic
    uint8_t service
    uint8_t state
    bint all_signaled
    bint ack_each  # acknowledge every request packet (document 003); else coalesce (IBA 9.7.5.1.2)
    bint established
    bint live
    bint parked  # a page that it needs is awaited
    int32_t parked_next  # another one that waits so; -1 = the last
    bint held  # its path is closed for now, see `NativeEngine.set_open`
    bint mig_refused  # PATH_MIG_ERR was reported
    uint8_t mig_state
    bint reliable  # it numbers, acknowledges and repeats: reliable connections and end-to-end contexts
    bint end_to_end  # it is an end-to-end context
    # requester
    SendWqe *sq
    Sge *sge  # max_send_sge for each place of the ring
    uint8_t *inline_data  # max_inline for each place
    uint32_t sq_size  # work requests at most
    uint32_t sq_mask  # the ring's places less one
    uint32_t max_send_sge
    uint32_t max_inline
    uint32_t sq_head  # posted so far
    uint32_t sq_una  # oldest not completed
    uint32_t sq_next  # next to send
    uint32_t next_packet  # packets of it sent
    uint32_t send_psn  # next PSN to send
    uint32_t una_psn  # oldest PSN not acknowledged
    uint32_t max_psn  # one after the largest PSN ever sent
    uint32_t rd_outstanding
    uint32_t retries_left
    uint32_t rnr_left
    uint32_t gone_back_psn
    bint gone_back  # retransmitting from gone_back_psn; a second hint for it changes nothing
    bint draining
    uint64_t resume_ns  # receiver not ready: silent until then; 0 = no
    uint64_t deadline_ns  # of the retransmission timer; 0 = off
    uint32_t window  # packets that may be unacknowledged
    uint32_t window_max
    uint32_t window_credit
    int32_t send_domain  # of the memory that is sent from and read into
    uint64_t delay_ns  # until then a DELAY request holds up the send queue; 0 = none does
    # responder
    uint32_t expected_psn
    uint32_t msn
    uint8_t open
    bint recv_taken
    bint nak_sent
    bint ack_due
    uint8_t ack_syndrome
    uint32_t ack_psn
    uint64_t recv_wr_id
    uint64_t recv_length
    Sge recv_sge[16]
    uint8_t recv_sges
    uint64_t received
    uint64_t write_address
    uint64_t write_left
    uint64_t write_length
    uint32_t write_key
    uint32_t write_psn  # of the message's first packet
    Answer *answers
    uint32_t answers_size  # a power of two
    uint32_t answers_head
    uint32_t answers_tail
    AtomicResult *atomics
    uint32_t atomics_size
    uint32_t atomics_next  # place of the next result
    uint32_t recv_qpn  # whose receive requests are taken: its own number, or that of a message's destination
    # reliable datagram: a queue pair's part
    int32_t rdd  # reliable datagram domain
    Loan *loans  # one for each place of the ring
    uint32_t *tails  # for each context the last place that waits for it, plus 1; 0 = none does
    uint32_t lent  # requests that contexts execute now
    # reliable datagram: an end-to-end context's part
    uint32_t remote_ee
    int32_t lender  # queue pair whose message is executed; -1 = none
    uint32_t lent_place
    uint32_t lent_qpn
    int32_t line_qp  # first of the line, -1 = nobody waits; and its request
    uint32_t line_place
    int32_t last_qp
    uint32_t last_place
    int32_t holder  # destination of the message that is received
    uint32_t recv_source  # its source
    uint8_t refusal  # what was answered to it, if it was refused
    # striping
    int32_t stripe[4]
    uint8_t stripes  # paths in use at once; 0 = one, without reordering
    uint8_t stripe_turn
    uint8_t stripe_round  # where packets that are sent again begin
    uint32_t repeated_psn  # of the request that came again last
    Early *early_requests
    Early *early_responses
    uint32_t early_request_count
    uint32_t early_response_count
    uint64_t reorder_ns  # how long a gap may stay open
    uint64_t request_gap_ns  # when it has been; 0 = there is none
    uint64_t response_gap_ns
    # scheduling
    bint answers_turn  # the next burst is one of answers, if there are any
    bint ready
    bint timed
    uint64_t heap_ns

cdef struct Report:
    int32_t kind
    int32_t a
    int32_t b

cdef struct Due:
    uint64_t when
    int32_t index

cdef struct Flow:  # identifications seen from one IPv4 source
    uint8_t source[16]
    bint known
    bint straight  # numbers each burst from 0, as this endpoint does
    bint guessed
    uint32_t last
    uint32_t guess
    uint64_t seen_ns

cdef class Tables:
    cdef WindowTable regions
    cdef QueuePair **qps
    cdef RecvQueue **recv_queues
    cdef CompletionRing **cqs
    cdef Path **paths
    cdef readonly int max_qp, max_recv_queue, max_cq, max_path, first_ee
    cdef uint64_t *counters
    cdef uint8_t own_gid[16]
    cdef uint8_t rx_own[16]  # GID that the present burst came to
    cdef uint32_t udp_port
    cdef uint32_t window_bytes
    cdef public bint icrc_checked
    cdef object unusable  # GIDs whose port is reported down
    cdef object _generations, _free_qp, _free_ee, _free_queue, _free_cq, _free_path
    cdef int32_t *ready
    cdef uint32_t ready_head, ready_tail, ready_size
    cdef Due *due
    cdef uint32_t due_count
    cdef Report *report_ring
    cdef uint32_t report_head, report_tail, report_size
    cdef Flow *flows

    cdef QueuePair *qp_at(self, int32_t at) except NULL
    cdef RecvQueue *queue_at(self, int32_t at) except NULL
    cdef CompletionRing *cq_at(self, int32_t at) except NULL
    cdef Path *path_at(self, int32_t at) except NULL
    cdef void forget(self, QueuePair *q) noexcept nogil
    cdef void free_context(self, int32_t at)
