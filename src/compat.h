/*
 * compat.h
 *		All that differs between PostgreSQL 15, 17 and 18 stands here.
 */
#ifndef JQ_COMPAT_H
#define JQ_COMPAT_H

#include "access/genam.h"
#include "access/transam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/rel.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h" /* until then postgres.h has these */
#endif

#if PG_VERSION_NUM < 150000
#error "jobqueue needs PostgreSQL 15 or later"
#endif

/* process numbers, 0-based, valid for GetPGProcByNumber() */
#if PG_VERSION_NUM >= 170000
#define jq_my_procno() ((int) MyProcNumber)
#else
#define jq_my_procno() ((int) MyProc->pgprocno)
#endif

#if PG_VERSION_NUM >= 170000
#define jq_procno_of(proc) ((int) GetNumberFromPGProc(proc))
#else
#define jq_procno_of(proc) ((int) (proc)->pgprocno)
#endif

/* next transaction id, and its limits; under XidGenLock */
#if PG_VERSION_NUM >= 170000
#define jq_transam TransamVariables
#else
#define jq_transam ShmemVariableCache
#endif

/* what a table's storage is known by; changes when it is rewritten */
#if PG_VERSION_NUM >= 160000
#define jq_relfilenumber(rel) ((Oid) (rel)->rd_locator.relNumber)
#else
#define jq_relfilenumber(rel) ((rel)->rd_node.relNode)
#endif

#if PG_VERSION_NUM >= 180000
#define jq_index_beginscan(heap, index, snap, nkeys) \
	index_beginscan(heap, index, snap, NULL, nkeys, 0)
#else
#define jq_index_beginscan(heap, index, snap, nkeys) \
	index_beginscan(heap, index, snap, nkeys, 0)
#endif

#if PG_VERSION_NUM >= 160000
#define jq_proc_aclcheck(oid, role, mode) \
	object_aclcheck(ProcedureRelationId, oid, role, mode)
#define jq_namespace_aclcheck(oid, role, mode) \
	object_aclcheck(NamespaceRelationId, oid, role, mode)
#define jq_database_aclcheck(oid, role, mode) \
	object_aclcheck(DatabaseRelationId, oid, role, mode)
#define jq_database_ownercheck(oid, role) \
	object_ownercheck(DatabaseRelationId, oid, role)
#else
#define jq_proc_aclcheck(oid, role, mode) pg_proc_aclcheck(oid, role, mode)
#define jq_namespace_aclcheck(oid, role, mode) \
	pg_namespace_aclcheck(oid, role, mode)
#define jq_database_aclcheck(oid, role, mode) \
	pg_database_aclcheck(oid, role, mode)
#define jq_database_ownercheck(oid, role) pg_database_ownercheck(oid, role)
#endif

/* is a DROP DATABASE that was interrupted to be repeated? */
#ifdef DATCONNLIMIT_INVALID_DB
#define jq_database_invalid(form) \
	((form)->datconnlimit == DATCONNLIMIT_INVALID_DB)
#else
#define jq_database_invalid(form) false
#endif

/* may he SET ROLE to it? */
#include "utils/acl.h"
static inline bool
jq_can_set_role(Oid member, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return member_can_set_role(member, role);
#else
	return is_member_of_role(member, role);
#endif
}

/* what the loader compares, and from 18 on pg_get_loaded_modules() shows */
#if PG_VERSION_NUM >= 180000
#define JQ_MODULE_MAGIC(n, v) PG_MODULE_MAGIC_EXT(.name = (n), .version = (v))
#else
#define JQ_MODULE_MAGIC(n, v) PG_MODULE_MAGIC
#endif

/* before a declaration; until 17 there was only a form that goes behind it too */
#ifndef pg_noreturn
#define pg_noreturn pg_attribute_noreturn()
#endif

#ifndef BGWORKER_BYPASS_ROLELOGINCHECK
#define JQ_NEEDS_NOBODY 1 /* NOLOGIN roles: see session.c */
#define BGWORKER_BYPASS_ROLELOGINCHECK 0
#endif

/* a wait event of our own where the server has them */
static inline uint32
jq_wait_event(uint32 *cache, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*cache == 0)
		*cache = WaitEventExtensionNew(name);
	return *cache;
#else
	(void) cache;
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/* has the server synchronous standbys?  Under SyncRepLock. */
#include "replication/walsender_private.h"
static inline bool
jq_standbys_defined(void)
{
#ifdef SYNC_STANDBY_DEFINED
	return (WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0;
#else
	return WalSndCtl->sync_standbys_defined;
#endif
}

/* for a process that serves all: what it does takes as long as it takes */
static inline void
jq_no_transaction_timeout(void)
{
#if PG_VERSION_NUM >= 170000
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#endif
}

#include "tcop/pquery.h"
static inline bool
jq_portal_run(Portal portal, DestReceiver *dest)
{
#if PG_VERSION_NUM >= 180000
	return PortalRun(portal, FETCH_ALL, true, dest, dest, NULL);
#else
	return PortalRun(portal, FETCH_ALL, true, true, dest, dest, NULL);
#endif
}

/* the record of a setting; it lives as long as the process */
static inline struct config_generic *
jq_guc_find(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return find_option(name, false, true, 0);
#else
	struct config_generic **all = get_guc_variables();
	int n = GetNumConfigOptions();
	int i;

	for (i = 0; i < n; i++)
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
#endif
}

#endif /* JQ_COMPAT_H */
