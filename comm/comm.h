/* SPDX-License-Identifier: Apache-2.0
 * Communication between ranks: one table, callers never test size == 1.
 *
 * Memory: a `struct mat` lives in the memory of comm->be; `void *` arguments are host memory. Counts and roots are the
 * same on every rank unless said otherwise. All calls but messages from one rank to another are collective; errors of the transport
 * are ERR_COMM. Ordinary failures (a missing file) are agreed before ranks go on: err = comm_agree(comm, open_it(...)).
 *
 * Mats travel by one of three roads. In the CPU's memory they are sent from where they stand. From a GPU they go through the
 * host in pieces of stage_bytes ("staged": comm_stage.c), which waits for the device; or NCCL carries them from GPU to GPU, in
 * the backend's own queue and waited for by nobody (comm_use_nccl). Messages are host memory on every road.
 *
 * Reproducibility: sums are comm_sum_exact, comm_reduce_exact and comm_reduce_scatter_exact (64-bit integers: any order, any
 * algorithm, same bits) or comm_tree_sum (f32 in one fixed binary tree over TREE_LEAVES leaves, however many ranks own them). NCCL's
 * comm_tree_sum is the exception: it adds in an order of its own, which no rank count shares; the GPUs' promise is a bound, not bits.
 */
#ifndef GLOWQ_COMM_COMM_H
#define GLOWQ_COMM_COMM_H

#include "comm/traffic.h"
#include "kernels/kernels.h"

#include <stddef.h>
#include <stdint.h>

struct comm_ops;
struct comm_message;
struct nccl_state;

struct comm {
    const struct comm_ops *ops;
    int rank, size;
    int host, local_rank, local_size; /* the first rank on this host, this one's number there, and how many there are */
    struct backend *be; /* whose memory mats live in; may be set after open, before the first mat argument */
    void *state;
    struct nccl_state *nccl; /* NULL: mats are staged */
    size_t stage_bytes;      /* of a piece of a staged mat */
    void *scratch;           /* comm_scratch */
    size_t scratch_bytes;
    struct traffic traffic; /* of all calls since open, but agreements and barriers */
};

/* A single rank without MPI. */
int comm_open_self(struct comm *comm, struct backend *be);
/* All ranks of MPI_COMM_WORLD; initializes MPI (asking for MPI_THREAD_MULTIPLE) if it isn't, and sets the rank that messages show
 * (err_set_rank). Started by no launcher (mpirun, srun --mpi=pmix: known by their environment variables) it is
 * comm_open_self: MPI isn't touched, which saves 0.1-0.3 s. ERR_COMM when srun started several tasks but MPI sees only
 * one. */
int comm_open_mpi(struct comm *comm, struct backend *be);
/* The ranks of the same color (>= 0), in the order of their rank in comm, as a communicator of its own: calls on it are met by its
 * members' only. host, local_rank and local_size are among them, traffic starts at 0; comm->be carries on, by NCCL where comm has it
 * and part has several ranks. part stays where it is and closes before comm and comm->be do. Collective, over all of comm. */
int comm_split(struct comm *comm, int color, struct comm *part);
/* Gives up what is posted and not completed. Finalizes MPI if open initialized it (a part leaves it open). Collective. */
void comm_close(struct comm *comm);
/* Ends all ranks (not only a part's) at once with this exit code, for errors that are not agreed. Doesn't return under MPI; with one
 * rank it does, and the caller ends itself. */
void comm_abort(struct comm *comm, int exit_code);

/* Lets NCCL carry the mats if it can: comm->be is a GPU of its own for every rank, and every rank finds libnccl.so.2, 2.19 or
 * newer. how (one line) says "nccl 2.28.9", or what carries them instead and why. ERR_COMM with NCCL's text when it was found and
 * fails. comm stays where it is until comm->be or comm closes. Once after the backend is open on every rank; collective.
 *
 * GLOWQ_NCCL=PATH names the library, GLOWQ_NCCL=off does without it. GLOWQ_NCCL_TIMEOUT=SECONDS (1800) is how long a rank waits
 * for the others inside a collective. A named library is used on any backend and for one rank too: the hook of the tests, whose
 * stand-in for NCCL works on host memory. */
int comm_use_nccl(struct comm *comm, char *how, size_t n_how);
/* "2.28.9 (/usr/lib/x86_64-linux-gnu/libnccl.so.2)", or why there is none. Not collective. */
void comm_nccl_version(char *text, size_t n);
/* Mats are carried without a wait for the device, so that these calls may stand in a step (kernels.h). */
int comm_is_queued(const struct comm *comm);

/* Host memory that calls of this comm (and only they) use while they run: kept and grown, so that no step allocates. */
int comm_scratch(struct comm *comm, size_t bytes, void **p);

/* The most negative of all ranks' codes. */
int comm_agree(struct comm *comm, int err);
/* The same where ranks do alike, as they all open one file, and would each tell of what they all meet. They do it quietly (was_quiet:
 * what err_quiet(1) returned), and rank 0 tells each message once: as it is where all have it, else with the first rank that has it and
 * how many have. */
int comm_agree_alike(struct comm *comm, int err, int was_quiet);
/* The same as the last call of all, on a road of its own. A rank that failed alone (its GPU) makes this call while the others wait
 * for it in another one: these go on waiting, where comm_agree would be taken for what they wait for and they would compute with
 * an error code among the numbers. */
int comm_agree_to_end(struct comm *comm, int err);
int comm_barrier(struct comm *comm);
int comm_bcast(struct comm *comm, void *host, size_t bytes, int root);
/* A message of any length from root to all: *bytes is its length on root, and elsewhere the room at host, then the length
 * (ERR_COMM if it has none). Who waits long for it dozes, so that an idle rank leaves its core alone: a message after a pause is
 * up to a millisecond late. */
int comm_tell(struct comm *comm, void *host, size_t *bytes, int root);
/* Element-wise maximum over ranks, in place. */
int comm_max_f64(struct comm *comm, double *host, int64_t n);
int comm_max_i64(struct comm *comm, int64_t *host, int64_t n);
/* Exact integer sum over ranks, in place, every rank ends with it. i64, dense; moved in pieces of at most 4 MB. */
int comm_sum_i64(struct comm *comm, int64_t *host, int64_t n);
int comm_sum_exact(struct comm *comm, struct mat *acc);
/* The same sum on root alone; what acc holds elsewhere is undefined. */
int comm_reduce_exact(struct comm *comm, struct mat *acc, int root);
/* Elements [first[p], first[p + 1]) of the same sum on rank p; what acc holds elsewhere is undefined. first [size + 1] goes from 0 to
 * the number of elements. Half of comm_sum_exact's traffic. */
int comm_reduce_scatter_exact(struct comm *comm, struct mat *acc, const int64_t *first);
/* Rank p contributes bytes[p] bytes; all[] holds every rank's, in rank order. bytes is known to every rank. */
int comm_allgather(struct comm *comm, const void *mine, const size_t *bytes, void *all);
/* The same number of bytes from every rank. */
int comm_allgather_each(struct comm *comm, const void *mine, size_t bytes, void *all);
/* comm_allgather to root only; all may be NULL elsewhere. */
int comm_gather(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root);
/* Inverse of comm_gather: root hands rank p its bytes[p]. */
int comm_scatter(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root);
/* m is whole on every rank afterwards; before, rank p had set its rows [row0[p], row0[p + 1]). Dense. */
int comm_allgather_rows(struct comm *comm, struct mat *m, const int64_t *row0);
/* m as root has it, on every rank. Dense. */
int comm_bcast_mat(struct comm *comm, struct mat *m, int root);
/* Rows go to other ranks: mine holds to[0] rows for rank 0, then to[1] for rank 1, ...; theirs gets from[p] rows of rank p likewise.
 * to and from [size] fit together over the ranks, who needn't know one another's. The same dtype and cols everywhere, dense, mine and
 * theirs apart. Rows for oneself are copied. */
int comm_exchange_rows(struct comm *comm, const struct mat *mine, const int64_t *to, struct mat *theirs,
                       const int64_t *from);
/* Blocking, point to point. tag < 1024. */
int comm_send(struct comm *comm, const void *host, size_t bytes, int to, int tag);
int comm_recv(struct comm *comm, void *host, size_t bytes, int from, int tag);
/* A message on its way while this rank computes: posted by one call, waited for by comm_complete, which frees it and sets *message to
 * NULL whatever comes of it. Nobody touches host until then. Otherwise as comm_send and comm_recv, with which it may be met; messages of
 * a pair with one tag arrive in the order posted. A rank may post to itself. Not collective. */
int comm_post_send(struct comm *comm, const void *host, size_t bytes, int to, int tag, struct comm_message **message);
int comm_post_recv(struct comm *comm, void *host, size_t bytes, int from, int tag, struct comm_message **message);
int comm_complete(struct comm *comm, struct comm_message **message); /* accepts NULL at *message */
/* parts f32 [n_parts T, cols]: this rank's partial sums as linear with shard_split() leaves them. sum f32 [T, cols]
 * gets the tree sum over all ranks' leaves, the same bits for every number of ranks. Powers of two: recursive doubling;
 * other counts gather the parts. sum may be parts where n_parts is 1. */
int comm_tree_sum(struct comm *comm, const struct mat *parts, struct mat *sum);

struct comm_ops {
    const char *name; /* "self", "mpi", "nccl" */
    int (*split)(struct comm *, int color, struct comm *part);
    void (*close)(struct comm *);
    void (*abort)(struct comm *, int exit_code);
    int (*barrier)(struct comm *);
    int (*bcast)(struct comm *, void *host, size_t bytes, int root);
    int (*tell)(struct comm *, void *host, size_t *bytes, int root);
    int (*max_f64)(struct comm *, double *host, int64_t n);
    int (*max_i64)(struct comm *, int64_t *host, int64_t n);
    int (*end)(struct comm *, int64_t *worst); /* maximum, met by no other call */
    int (*sum_i64)(struct comm *, int64_t *host, int64_t n);
    int (*reduce_i64)(struct comm *, int64_t *host, int64_t n, int root); /* the sum, on root alone */
    int (*reduce_scatter_i64)(struct comm *, int64_t *host, const int64_t *first);
    int (*allgather)(struct comm *, const void *mine, const size_t *bytes, void *all);
    int (*gather)(struct comm *, const void *mine, const size_t *bytes, void *all, int root);
    int (*scatter)(struct comm *, const void *all, const size_t *bytes, void *mine, int root);
    int (*send)(struct comm *, const void *host, size_t bytes, int to, int tag);
    int (*recv)(struct comm *, void *host, size_t bytes, int from, int tag);
    int (*post_send)(struct comm *, const void *host, size_t bytes, int to, int tag, struct comm_message **message);
    int (*post_recv)(struct comm *, void *host, size_t bytes, int from, int tag, struct comm_message **message);
    int (*complete)(struct comm *, struct comm_message *message);
    /* out[p] bytes from mine + out_at[p] to rank p, in[p] from it to theirs + in_at[p]. A pair meets as often as one of its ranks has
     * bytes for the other; who has none for anybody may skip the call. */
    int (*all_to_all)(struct comm *, const void *mine, const size_t *out, const size_t *out_at, void *theirs,
                      const size_t *in, const size_t *in_at);
    /* Send mine to peer and receive theirs from it: both call it. */
    int (*exchange)(struct comm *, const void *mine, void *theirs, size_t bytes, int peer);
    /* Of the mats, none of them empty: comm_stage.c or comm_nccl.c. */
    int (*sum_exact)(struct comm *, struct mat *acc);
    int (*reduce_exact)(struct comm *, struct mat *acc, int root);
    int (*reduce_scatter_exact)(struct comm *, struct mat *acc, const int64_t *first);
    int (*tree_sum)(struct comm *, const struct mat *parts, struct mat *sum);
    int (*exchange_rows)(struct comm *, const struct mat *mine, const int64_t *to, struct mat *theirs,
                         const int64_t *from);
    int (*allgather_rows)(struct comm *, struct mat *m, const int64_t *row0);
    int (*bcast_mat)(struct comm *, struct mat *m, int root);
};

#endif
