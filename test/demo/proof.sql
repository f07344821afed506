-- Four numbers, each must be 0: folders whose totals differ from a direct
-- query; files not counted exactly once; jobs that began before another of
-- their folder had ended; jobs left over or dead.
SELECT
	(SELECT count(*)
	 FROM folder_total t
		  FULL JOIN (SELECT folder, count(*) AS files, sum(bytes) AS bytes,
							max(modified) AS newest
					 FROM file GROUP BY folder) f USING (folder)
	 WHERE (t.files, t.bytes, t.newest)
		   IS DISTINCT FROM (f.files, f.bytes, f.newest)),
	(SELECT count(*)
	 FROM (SELECT file, count(*) AS runs FROM run GROUP BY file) r
		  FULL JOIN file f ON f.id = r.file
	 WHERE r.runs IS DISTINCT FROM 1 OR f.id IS NULL),
	(SELECT count(*)
	 FROM (SELECT started, lag(ended) OVER (PARTITION BY folder
											ORDER BY started, ended) AS before
		   FROM run) o
	 WHERE started < before),
	(SELECT count(*) FROM jobqueue_job)
	+ (SELECT count(*) FROM jobqueue_history);
