/* SPDX-License-Identifier: Apache-2.0
 * Publication: see publication.h. */
#include "calib/publication.h"

#include "base/err.h"
#include "base/worker.h"

#include <string.h>

static int publish(void *context)
{
    return store_sealed_publish(context);
}

int publication_open(struct publication *publication)
{
    return worker_open(&publication->worker);
}

int publication_wait(struct publication *publication)
{
    return worker_wait(publication->worker);
}

int publication_begin(struct publication *publication, struct comm *comm, int root, const struct store_sealed *sealed)
{
    int err = OK;
    TRY(comm_agree(comm, publication_wait(publication)));
    if (comm->rank == root) {
        publication->sealed = *sealed;
        worker_start(publication->worker, publish, &publication->sealed);
    }
out:
    if (err && comm->rank == root)
        store_sealed_discard(sealed);
    return err;
}

void publication_close(struct publication *publication)
{
    worker_close(publication->worker);
    memset(publication, 0, sizeof *publication);
}
